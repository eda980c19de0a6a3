"""What clients do with connections: silence, slowness, floods, leaving; and what stopping the server does to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.agent.request import AskRequest
from gog_edge.serve.app import create_app
from gog_edge.serve.connection import LoopErrors, make_server, within_descriptors
from gog_edge.serve.limits import ServeLimits
from gog_edge.types import Answer, AnswerEvent, Event, StopReason, TokenEvent
from tests.serve.over_http import BODY, CHAT, Policy, connect, get, head, post, read, serving, talk, until


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 0),
        (b"GET /healthz HTTP/1.1\r\nHost: local", 408),
        (head("POST", "/v1/ask", Content_Length="100") + b"{", 408),
        (head("POST", "/v1/ask", Transfer_Encoding="chunked") + b"5\r\nab", 408),
    ],
)
def test_who_does_not_finish_is_disconnected(sent: bytes, status: int) -> None:
    limits = ServeLimits(header_seconds=0.3, body_seconds=0.3)
    with serving(Policy(), limits) as port:
        reply = talk(port, sent)
    assert reply.status == status
    if status:
        assert "did not arrive within 0.3 s" in reply.json["error"]


def test_a_trickle_of_bytes_does_not_buy_time() -> None:
    with serving(Policy(), ServeLimits(body_seconds=0.5)) as port, connect(port) as connection:
        connection.sendall(head("POST", "/v1/chat/completions", Content_Length="1000"))
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < start + 10:
                connection.sendall(b" ")
                time.sleep(0.05)
    assert time.monotonic() - start < 5


def test_a_refused_body_is_not_awaited_for_ever() -> None:
    with serving(Policy(), ServeLimits(body_seconds=0.3)) as port:
        assert talk(port, head("POST", "/nowhere", Content_Length="100")).status == 404


def test_bytes_that_are_no_http_get_one_reply_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy()
    with serving(policy) as port:
        for bad in (head("DELETE", "/v1/ask", Transfer_Encoding="chunked") + b"\x93\x98\r\n\r\n", b"\x00\x01\r\n\r\n"):
            assert talk(port, bad).status == 400
        with connect(port) as connection:  # behind a request whose stream has begun
            stream = post("/v1/ask", {**BODY, "stream": True}).replace(b"Connection: close\r\n", b"")
            connection.sendall(stream)
            assert connection.recv(1)
            connection.sendall(b"\x93\x98 nonsense\r\n\r\n")
            policy.let_go.set()
            read(connection)
        assert get(port).status == 200
    assert not [record for record in caplog.records if record.exc_info], caplog.text


def test_silent_connections_do_not_stop_health_checks() -> None:
    limits = ServeLimits(connections=10, header_seconds=60, body_seconds=60)
    policy = Policy()
    with serving(policy, limits) as port, ExitStack() as stack, connect(port) as asking:
        asking.sendall(post("/v1/ask", BODY))
        until(lambda: bool(policy.asked))
        upload = head("POST", "/v1/ask", Content_Length="1000") + b"{"
        held = [stack.enter_context(connect(port)) for _ in range(60)]
        for i, connection in enumerate(held):
            with contextlib.suppress(OSError):  # some are closed already
                connection.sendall(upload if i % 2 else b"")
        for _ in range(3):
            assert get(port).status == 200
        closed, _, _ = select.select(held, [], [], 0)  # what can be read is a reply that refuses, or the end
        assert len(closed) >= 50
        policy.let_go.set()
        assert read(asking).json["text"] == "a boat"  # what is being answered keeps its connection


def test_headers_have_a_size() -> None:
    with serving(Policy(), ServeLimits(header_bytes=1000)) as port:
        assert talk(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2000).status == 400


def test_bodies_have_a_size_that_is_noticed_before_they_are_read() -> None:
    limits = ServeLimits(body=1 << 20, body_seconds=60)
    with serving(Policy(), limits) as port:
        stated = talk(port, head("POST", "/v1/ask", Content_Length="9" * 18))
        chunk = b"40000\r\n" + b" " * 0x40000 + b"\r\n"
        with connect(port) as connection:
            connection.sendall(head("POST", "/v1/ask", Transfer_Encoding="chunked") + chunk * 4 + b"1\r\nx\r\n")
            chunked = read(connection)
    assert stated.status == chunked.status == 413
    assert "larger than 1 MiB" in stated.json["error"]


def test_all_bodies_together_have_a_size() -> None:
    policy = Policy()
    large = post("/v1/ask", {**BODY, "image": "A" * 60000})
    with serving(policy, ServeLimits(in_flight=100_000)) as port, connect(port) as first:
        first.sendall(large)
        until(lambda: bool(policy.asked))
        second = talk(port, large)
        policy.let_go.set()
        assert read(first).status == 200
        assert talk(port, large).status == 200  # the room is free again
    assert second.status == 503
    assert second.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_cancels_the_question(stream: bool) -> None:
    policy = Policy()
    with serving(policy) as port:
        with connect(port) as leaving:
            leaving.sendall(post("/v1/ask", {**BODY, "stream": stream}))
            until(lambda: bool(policy.asked))
        until(lambda: policy.cancelled == 1)
        policy.let_go.set()
        assert talk(port, post("/v1/ask", BODY)).json["text"] == "a boat"


def test_who_hangs_up_while_waiting_gives_the_place_up() -> None:
    policy = Policy()
    with serving(policy, queue=1) as port, connect(port) as first:
        first.sendall(post("/v1/ask", BODY))
        until(lambda: bool(policy.asked))
        with connect(port) as leaving:
            leaving.sendall(post("/v1/ask", BODY))
            until(lambda: talk(port, post("/v1/ask", b"{")).status == 429)
        until(lambda: talk(port, post("/v1/ask", b"{")).status == 400)
        policy.let_go.set()
        assert read(first).status == 200
    assert len(policy.asked) == 1


def test_a_client_that_stops_reading_is_disconnected_and_holds_nobody_up() -> None:
    large = Policy(
        instead=lambda _: iter([*(TokenEvent(0, "x" * 100_000),) * 100, AnswerEvent(Answer("a", StopReason.ANSWERED))])
    )
    with serving(large, ServeLimits(write_seconds=0.5), queue=0) as port, socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", port))
        lazy.sendall(post("/v1/ask", {**BODY, "stream": True}))
        until(lambda: bool(large.asked))
        until(lambda: talk(port, post("/v1/ask", BODY)).status == 200)
        time.sleep(1)
        data = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while chunk := lazy.recv(65536):
                data += chunk
    assert b"[DONE]" not in data


def test_the_loop_reports_by_our_rule() -> None:
    async def handler() -> object:
        server = make_server(create_app(Policy(), name="x"), ServeLimits())  # type: ignore[arg-type]
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await server.startup([listening])
            found = asyncio.get_running_loop().get_exception_handler()
            await server.shutdown([listening])
        return found

    assert isinstance(asyncio.run(handler()), LoopErrors)


def test_want_of_descriptors_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    errors = LoopErrors()
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            errors(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
    loop.close()
    assert [r.getMessage() for r in caplog.records] == [
        "new connections wait, Too many open files: raise `ulimit -n`, or lower --connections"
    ]
    assert caplog.records[0].exc_info is None


def test_connections_leave_descriptors_for_everything_else() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        assert sum(within_descriptors(10_000)) <= 300
        assert within_descriptors(7)[0] == 7
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_running_questions_are_answered_before_the_server_ends() -> None:
    policy = Policy()
    with ExitStack() as stack:
        with serving(policy, ServeLimits(shutdown_seconds=20)) as port:
            asking = stack.enter_context(connect(port))
            asking.sendall(post("/v1/ask", BODY))
            until(lambda: bool(policy.asked))
            policy.let_go.set()
        assert read(asking).json["text"] == "a boat"


def test_the_end_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy()
    with ExitStack() as stack:
        with serving(policy, ServeLimits(shutdown_seconds=1)) as port:
            asking, uploading, silent = (stack.enter_context(connect(port)) for _ in range(3))
            asking.sendall(post("/v1/chat/completions", CHAT))
            uploading.sendall(head("POST", "/v1/ask", Content_Length="1000") + b"{")
            until(lambda: bool(policy.asked))
            start = time.monotonic()
        assert time.monotonic() - start < 10
        assert read(silent).status == 0
        assert read(uploading).json == {"error": "the server is stopping: try again later"}
        assert read(asking).json["error"]["type"] == "server_error"
    assert policy.cancelled == 1
    assert not [r for r in caplog.records if r.exc_info]


def test_the_end_does_not_wait_for_a_kernel_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gog_edge.serve.app._WIND_DOWN_SECONDS", 0.2)
    woken = threading.Event()

    def hang(_: AskRequest) -> Iterator[Event]:
        woken.wait(60)
        yield AnswerEvent(Answer("late", StopReason.ANSWERED))

    policy = Policy(instead=hang)
    with ExitStack() as stack:
        with serving(policy, ServeLimits(shutdown_seconds=1)) as port:
            asking = stack.enter_context(connect(port))
            asking.sendall(post("/v1/ask", BODY))
            until(lambda: bool(policy.asked))
            start = time.monotonic()
        assert time.monotonic() - start < 10
        assert read(asking).status == 503
        assert all(t.daemon for t in threading.enumerate() if t.name == "gog-edge-questions")
    woken.set()
