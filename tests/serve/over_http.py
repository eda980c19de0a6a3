"""A server on a real socket with a scripted policy behind it, and a client that says each byte itself."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gog_edge.agent.request import AskRequest
from gog_edge.serve.app import create_app
from gog_edge.serve.connection import make_server
from gog_edge.serve.limits import ServeLimits
from gog_edge.types import Answer, AnswerEvent, Event, StopReason, TokenEvent

SECONDS = 20.0
BODY = {"image": base64.b64encode(b"a picture").decode(), "question": "What is it?"}
CHAT = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ]
}


@dataclass
class Policy:
    """Writes one token, waits until it is let go or cancelled, and answers; or does what `instead` does."""

    instead: Callable[[AskRequest], Iterator[Event]] | None = None
    asked: list[AskRequest] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    cancelled: int = 0
    schemas: list[Any] = field(default_factory=list)

    @property
    def grammar(self) -> Policy:
        return self

    def check(self, schema: Any) -> None:
        """Any schema will do."""
        self.schemas.append(schema)

    def events(self, request: AskRequest) -> Iterator[Event]:
        self.asked.append(request)
        if self.instead is not None:
            yield from self.instead(request)
            return
        yield TokenEvent(0, "I")
        assert request.budget is not None
        while not self.let_go.wait(0.01):
            if request.budget.cancelled:
                self.cancelled += 1
                yield AnswerEvent(Answer("", StopReason.CANCELLED))
                return
        yield AnswerEvent(Answer("a boat", StopReason.ANSWERED))


@contextmanager
def serving(policy: Policy, limits: ServeLimits | None = None, **access: Any) -> Iterator[int]:
    """The port of a server that runs in a thread."""
    limits = limits or ServeLimits(shutdown_seconds=2)
    app = create_app(policy, name="scripted", limits=limits, **access)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = make_server(app, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events, the last of which must be [DONE]."""
        lines = [line.removeprefix(b"data: ") for line in self.body.splitlines() if line.startswith(b"data: ")]
        assert lines.pop() == b"[DONE]"
        return [json.loads(line) for line in lines]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def head(method: str, path: str, **headers: str) -> bytes:
    fields = {"Host": "localhost", **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(path: str, body: Any, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, Content_Length=str(len(data)), Connection="close", **headers) + data


def read(connection: socket.socket) -> Reply:
    """Everything until the server closes the connection."""
    data = bytearray()
    while chunk := connection.recv(65536):
        data += chunk
    if not data:
        return Reply(0, {}, b"")
    top, _, body = bytes(data).partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    return Reply(int(status.split()[1]), {k.lower(): v for k, _, v in (x.partition(": ") for x in lines)}, body)


def talk(port: int, data: bytes) -> Reply:
    with connect(port) as connection:
        connection.sendall(data)
        return read(connection)


def get(port: int, path: str = "/healthz", **headers: str) -> Reply:
    return talk(port, head("GET", path, Connection="close", **headers))
