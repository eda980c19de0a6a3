"""Requests to a running server: bodies with changed values, damaged pictures, and bytes that are no request."""

from __future__ import annotations

import base64
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from gog_edge.serve.limits import ServeLimits
from tests.faults.harness.core import Area, Attempt, Unavailable, Wrong
from tests.faults.harness.mutate import damaged, mutated
from tests.faults.harness.policy import load, own_cache, photo, tiny

_SECONDS = 60.0
_PATHS = (
    "/v1/ask",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/models",
    "/healthz",
    "/",
    "/v1/ask/",
    "/v1/ask?x=%00",
    "/%2e%2e/etc",
)
_METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "FOO")


class _Tracebacks(logging.Handler):
    """Whatever is logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "Traceback" in record.getMessage():
            self.found.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    try:
        from tests.serve.over_http import head, post, serving
    except ImportError as e:
        raise Unavailable(f"the extra `serve` ({e.name})") from e
    own_cache(folder)
    heard = _Tracebacks()
    logging.getLogger().addHandler(heard)
    picture = photo()
    bodies = _bodies(picture)
    agent = load(tiny(folder), folder / "policy")
    limits = ServeLimits(shutdown_seconds=2, header_seconds=0.5, body_seconds=0.5)
    with agent, serving(agent, limits) as port:  # type: ignore[arg-type]
        healthy = [post(path, body) for path, body in bodies]
        want = [_answer(_exchange(port, request)) for request in healthy]

        def attempt(rng: Random, number: int) -> str:
            which = rng.randrange(len(bodies))
            path, body = bodies[which]
            kind = number % 4
            if kind == 0:
                request = post(path, mutated(body, rng)[1])
            elif kind == 1:
                bad = damaged(picture, rng)[1]
                request = post(path, json.loads(json.dumps(body).replace(_base64(picture), _base64(bad))))
            elif kind == 2:
                request = damaged(post(path, body), rng, healthy[rng.randrange(len(healthy))])[1]
            else:
                names = {f"X-{rng.randrange(9)}": rng.choice(("", "x" * 9000, "é", "\x01", "1, 2")) for _ in range(3)}
                names |= rng.choice(({}, {"Transfer_Encoding": "chunked"}, {"Content_Length": "-1"}, {"Expect": "x"}))
                request = head(rng.choice(_METHODS), rng.choice(_PATHS), **names) + rng.randbytes(rng.randrange(99))
            reply = _exchange(port, request)
            ended = _checked(reply)
            if number % 10 == 0 and _answer(_exchange(port, healthy[which])) != want[which]:
                raise Wrong("the same question has another answer afterwards")
            if b" 200 " not in _exchange(port, head("GET", "/healthz", Connection="close")).split(b"\r\n")[0]:
                raise Wrong("the health check fails afterwards")
            if heard.found:
                raise Wrong(f"a traceback in the log: {heard.found.pop()}"[:400])
            return ended

        yield attempt


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bodies(picture: bytes) -> list[tuple[str, Any]]:
    url = f"data:image/png;base64,{_base64(picture)}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    chat = {"model": "x", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 50}
    ask = {"image": _base64(picture), "question": "What is it?", "deadline": 30, "max_turns": 1}
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    said = {**chat, "stop": ["no such", "text"], "seed": 3, "response_format": form, "tools": [], "deadline": "30s"}
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What is it?"}]
    response = {"input": [{"role": "user", "content": parts}], "instructions": "Be short.", "temperature": 0,
                "max_output_tokens": 50, "text": {"format": {"type": "text"}}}  # fmt: skip
    streams = [("/v1/ask", ask), ("/v1/chat/completions", chat), ("/v1/responses", response)]
    return [*streams, *((path, {**body, "stream": True}) for path, body in streams), ("/v1/chat/completions", said)]


def _exchange(port: int, request: bytes) -> bytes:
    """What the server sends until it closes; nothing more is sent to it, as from a client that shut its side."""
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        data = bytearray()
        try:
            connection.sendall(request)
            if b"Connection: close" not in request:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                data += chunk
        except TimeoutError as e:
            raise Wrong(f"no end of the reply in {_SECONDS:.0f} s, {len(data)} bytes came") from e
        except OSError:  # reset by the server: an answer as well
            pass
        return bytes(data)


def _checked(reply: bytes) -> str:
    """The status, if it is one that a request may get."""
    if not reply:
        return "closed"
    status = reply.split(b"\r\n", 1)[0].split(b" ")
    if not status[0].startswith(b"HTTP/1.") or len(status) < 2 or not status[1].isdigit():
        raise Wrong(f"no HTTP reply: {reply[:100]!r}")
    if int(status[1]) >= 500 and int(status[1]) != 503:
        raise Wrong(f"status {int(status[1])}: {reply[-300:]!r}")
    if b"Traceback" in reply or b"site-packages" in reply:
        raise Wrong(f"a traceback in the reply: {reply[-300:]!r}")
    return status[1].decode()


def _answer(reply: bytes) -> str:
    """The text of an answer, whatever the form of the reply."""
    body = reply.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")
    found = []
    for line in body.splitlines():
        line = line.removeprefix("data: ")
        if line.startswith("{"):
            data = json.loads(line)
            if data.get("object") == "response" or str(data.get("type")).startswith("response."):
                found += [part["text"] for item in data.get("output", ()) for part in item["content"]]
                found.append(str(data.get("delta", "")))
                continue
            found.append(str(data.get("text", "")) if "text" in data else json.dumps(data.get("choices", "")))
    return "".join(found)


AREA = Area("http", "a reply below 500 (or 503), the server goes on, no traceback", _open, longest_s=120)
