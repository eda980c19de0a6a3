"""A camera on the network: MJPEG over HTTP, or over RTSP (RFC 2326, interleaved; JPEG in RTP by RFC 2435)."""

from __future__ import annotations

import io
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gog_edge.image.frame import Frame
from tests.runtime.conftest import picture

SIZE = (64, 48)  # multiples of 16, as JPEG's blocks want it
_SDP = "\r\n".join(
    [
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=test",
        "c=IN IP4 0.0.0.0",
        "t=0 0",
        "m=video 0 RTP/AVP 26",
        "a=control:a",
        "",
    ]
)


def jpeg(frame: Frame) -> bytes:
    """Baseline, 4:2:0, with the standard Huffman tables."""
    out = io.BytesIO()
    frame.image().save(out, "JPEG", quality=90, subsampling=2)
    return out.getvalue()


class Camera(socketserver.ThreadingTCPServer):
    """A frame every 20 ms. `breaks`: after how many frames the first connections end; below 0: before they answer."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, breaks: tuple[int, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.breaks, self.connections, self.stopped = breaks, 0, threading.Event()

    def address(self, scheme: str) -> str:
        """rtsp or http."""
        return f"{scheme}://127.0.0.1:{self.server_address[1]}/video.mjpg"


class Connection(socketserver.StreamRequestHandler):
    """One client."""

    server: Camera

    def handle(self) -> None:
        number = self.server.connections
        self.server.connections += 1
        most = self.server.breaks[number] if number < len(self.server.breaks) else 100_000
        with suppress(OSError):
            if most >= 0:
                self._talk(most)

    def _talk(self, most: int) -> None:
        while (request := self._request()) is not None:
            method, fields = request
            if method == "GET":
                self._send(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
                self._frames(most, _part)
                return
            answer = {
                "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n",
                "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n\r\n{_SDP}",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n",
            }.get(method, "\r\n")
            self._send(f"RTSP/1.0 200 OK\r\nCSeq: {fields.get('cseq', '0')}\r\nSession: 1\r\n{answer}".encode())
            if method == "PLAY":
                self._frames(most, _rtp)
                return

    def _request(self) -> tuple[str, dict[str, str]] | None:
        first = self.rfile.readline().decode().split(" ")
        if len(first) < 2:
            return None
        fields = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        return first[0], fields

    def _frames(self, most: int, wrapped: object) -> None:
        for number in range(most):
            self._send(wrapped(jpeg(picture(number % 7, *SIZE)), number))  # type: ignore[operator]
            if self.server.stopped.wait(0.02):
                return

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


def _part(data: bytes, number: int) -> bytes:
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data + b"\r\n"


def _rtp(data: bytes, number: int) -> bytes:
    """One frame as one interleaved RTP packet: quantisation tables and scan; the rest is implied by the type."""
    tables, scan, at = b"", b"", 2
    while not scan:
        marker, length = struct.unpack(">HH", data[at : at + 4])
        body = data[at + 4 : at + 2 + length]
        while marker == 0xFFDB and body:
            tables, body = tables + body[1:65], body[65:]
        at += 2 + length
        scan = data[at:-2] if marker == 0xFFDA else b""
    main = struct.pack(">B3sBBBB", 0, b"\0\0\0", 1, 255, SIZE[0] // 8, SIZE[1] // 8)
    payload = main + struct.pack(">BBH", 0, 0, len(tables)) + tables + scan
    packet = struct.pack(">BBHII", 0x80, 0x80 | 26, number & 0xFFFF, number * 1800, 1) + payload
    return struct.pack(">cBH", b"$", 0, len(packet)) + packet


@contextmanager
def camera(*breaks: int) -> Iterator[Camera]:
    """A running camera."""
    with Camera(breaks) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
