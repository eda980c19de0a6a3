"""A web server on 127.0.0.1 for tests: routes are functions, faults are one line. Ends with its fixture."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Call:
    """A request that arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Route = Callable[[BaseHTTPRequestHandler, Call], None]


@dataclass
class WebServer:
    """Serves `routes` (path -> function) and remembers `calls`."""

    routes: dict[str, Route] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    port: int = 0

    def __enter__(self) -> WebServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def _handle(self) -> None:
                parts = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {k.lower(): v for k, v in self.headers.items()}
                call = Call(self.command, parts.path, query, headers, body)
                outer.calls.append(call)
                route = outer.routes.get(parts.path, missing)
                try:
                    route(self, call)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """A complete response; `content_type="…"` and other headers by name."""
    handler.send_response(status)
    for name, value in {"content_type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def answer(value: Any, status: int = 200, **headers: str) -> Route:
    """A route that answers with JSON (or with bytes as they are)."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda handler, call: send(handler, body, status, **headers)


def missing(handler: BaseHTTPRequestHandler, call: Call) -> None:
    send(handler, b'{"error": "no such route"}', 404)


def html(text: str, **headers: str) -> Route:
    return answer(text.encode(), content_type="text/html; charset=utf-8", **headers)


# How long a fault goes on. Deadlines in the tests are well below a second and what checks them allows several: a busy
# machine may stop a test for a second, and who waits for the fault to end is seen anyway. Threads end with the process.
FOREVER = 60.0
IN_TIME = 10.0


def slow_drip(seconds: float = FOREVER) -> Route:
    """Headers at once, then one byte every 50 ms."""

    def route(handler: BaseHTTPRequestHandler, call: Call) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", "100000")
        handler.end_headers()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
        handler.close_connection = True

    return route


def silent(seconds: float = FOREVER) -> Route:
    """Accepts and says nothing."""

    def route(handler: BaseHTTPRequestHandler, call: Call) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return route


def cut_off(handler: BaseHTTPRequestHandler, call: Call) -> None:
    """Half of the promised body, then the connection closes."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"results": [')
    handler.close_connection = True


def cut_off_chunked(handler: BaseHTTPRequestHandler, call: Call) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'd\r\n{"results": [\r\n')
    handler.close_connection = True


def huge(total: int, content_type: str = "application/json", *, chunked: bool = False) -> Route:
    """`total` bytes of spaces, made while they are sent."""

    def route(handler: BaseHTTPRequestHandler, call: Call) -> None:
        handler.send_response(200)
        handler.send_header("content-type", content_type)
        handler.send_header(*(("transfer-encoding", "chunked") if chunked else ("content-length", str(total))))
        handler.end_headers()
        piece = b"x" * (1 << 16)
        for _ in range(total // len(piece)):
            handler.wfile.write(b"10000\r\n" + piece + b"\r\n" if chunked else piece)

    return route


def gzip_bomb(unpacked: int) -> Route:
    """A small body that unpacks to `unpacked` bytes."""
    packed = gzip.compress(b" " * unpacked, 9)
    return answer(packed, content_encoding="gzip")


def redirect(to: str, status: int = 302) -> Route:
    return answer(b"", status, location=to)
