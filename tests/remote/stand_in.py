"""A server that speaks OpenAI's protocol over real HTTP and says what a test wrote for it."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One answer to /chat/completions. `text` is sent in pieces of 3 characters. `breaks`: the connection ends after so
    many pieces; `status`: an error instead; `pause`: seconds before each piece; `whole`: without streaming."""

    text: str = ""
    finish: str = "stop"
    status: int = 200
    error: Any = "no"
    headers: dict[str, str] = field(default_factory=dict)
    breaks: int = -1
    pause: float = 0.0
    whole: bool = False
    deltas: list[dict[str, Any]] | None = None
    usage: dict[str, Any] | None = None


@dataclass
class StandIn:
    """What is served and what was asked."""

    replies: deque[Reply] = field(default_factory=deque)
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "nano", "owned_by": "vllm"}])
    key: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    hung_up: int = 0
    url: str = ""

    def say(self, *texts: str, **how: Any) -> None:
        self.replies.extend(Reply(text, **how) for text in texts)


@contextmanager
def serving() -> Iterator[StandIn]:
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def allowed(self) -> bool:
            state.seen.append(self.path)
            if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
                self.send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
                return False
            return True

        def do_GET(self) -> None:
            if not self.allowed():
                return
            if self.path == "/v1/models":
                self.send(200, {"object": "list", "data": state.models})
            else:
                self.send(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            state.requests.append(body)
            reply = state.replies.popleft()
            if reply.status != 200:
                self.send(reply.status, {"error": {"message": reply.error}}, reply.headers)
                return
            if reply.whole:
                message = {"role": "assistant", "content": reply.text}
                self.send(200, {"choices": [{"message": message, "finish_reason": reply.finish}], "usage": reply.usage})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            texts = [reply.text[i : i + 3] for i in range(0, len(reply.text), 3)]
            deltas = reply.deltas if reply.deltas is not None else [{"content": t} for t in texts]
            try:
                self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
                for number, delta in enumerate(deltas):
                    if number == reply.breaks:
                        return
                    time.sleep(reply.pause)
                    self.event({"choices": [{"delta": delta}]})
                self.event({"choices": [{"delta": {}, "finish_reason": reply.finish}], "usage": reply.usage})
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                state.hung_up += 1

        def event(self, data: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
