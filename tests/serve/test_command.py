"""`gog-edge serve` as a process: it listens, answers, ends with Ctrl-C or SIGTERM, and survives floods of connections;
what is wrong with its options is one line."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.cli.main import run
from tests.serve.over_http import post, talk


def test_a_taken_port_is_met_before_the_policy_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--bundle", "./no such bundle", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gog-edge: can't listen on 127.0.0.1:{port} (Address already in use")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", ""], "--host is empty"),
        (["--host", "  "], "--host is empty"),
        (["--api-key-env", "GOG_EDGE_NO_SUCH_KEY"], "--api-key-env GOG_EDGE_NO_SUCH_KEY: this environment variable"),
    ],
)
def test_options_that_would_open_more_than_was_meant_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["serve", "--bundle", "./no such bundle", "--port", "0", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gog-edge: {message}")
    assert err.count("\n") == 1


@contextmanager
def served(
    bundle: Path, *options: str, descriptors: int = 0, **env: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server process and its port."""
    command = [sys.executable, "-m", "gog_edge", "serve", "--bundle", str(bundle), "--port", "0", *options]
    if descriptors:
        command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("serving "))
        yield process, int(line.split(" at ")[1].split()[0].rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as reply:
        return str(json.load(reply)["bundle"])


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGINT, (0, 130)), (signal.SIGTERM, (0,))])
def test_it_serves_until_it_is_told_to_end(tiny_bundle: Path, number: int, codes: tuple[int, ...]) -> None:
    options = ("--shutdown", "1s", "--threads", "1", "--api-key-env", "KEY", "--access-log", "--sessions", "2")
    with served(tiny_bundle, *options, KEY="secret") as (process, port), ExitStack() as stack:
        assert healthy(port) == tiny_bundle.name
        assert process.stderr is not None
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60)
        for sent in (b"", b"POST /v1/ask HTTP/1.1\r\n", b""):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(sent)
        upload = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        upload.sendall(
            b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nContent-Length: 99\r\n\r\n{"
        )
        assert healthy(port)
        start = time.monotonic()
        process.send_signal(number)
        err = process.stderr.read()
        assert process.wait(60) in codes
        assert time.monotonic() - start < 30
    assert "Traceback" not in err
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["path"] == "/v1/models"] == [401]
    assert "/healthz" in [line["path"] for line in lines]


def test_the_limit_of_descriptors_stops_neither_health_checks_nor_the_log(tiny_bundle: Path) -> None:
    with served(tiny_bundle, descriptors=96) as (process, port), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        for _ in range(3):
            assert healthy(port)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert "Traceback" not in err
    assert err.count("\n") <= 3


def question(photo: Path, stream: bool) -> bytes:
    image = base64.b64encode(photo.read_bytes()).decode()
    return post("/v1/ask", {"image": image, "question": "What is it?", "stream": stream})


def test_a_stream_that_runs_is_finished_before_the_server_ends(tiny_bundle: Path, photo: Path) -> None:
    with served(tiny_bundle, "--access-log", "--shutdown", "60s") as (process, port):
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.sendall(question(photo, stream=True))
        begun = connection.recv(20)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(OSError):
            for _ in range(1000):  # it takes no new connections, once it has heard of it
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                time.sleep(0.02)
        reply = begun + b"".join(iter(lambda: connection.recv(65536), b""))
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr if line.startswith("{")]
        assert process.wait(60) == 0
    assert b"data: [DONE]\n\n" in reply
    assert b'"type": "answer"' in reply and b"cancelled" not in reply
    (line,) = (line for line in lines if line["path"] == "/v1/ask")
    assert (line["status"], line["method"]) == (200, "POST") and line["outcome"] in ("answered", "forced", "exhausted")
    assert line["sent"] > 100 and line["seconds"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no /proc")
def test_the_threads_of_a_computation_are_as_many_as_it_was_told(tiny_bundle: Path, photo: Path) -> None:
    def threads(wanted: int) -> int:
        with served(tiny_bundle, "--threads", str(wanted)) as (process, port):
            assert talk(port, question(photo, stream=False)).status == 200
            return len(list(Path(f"/proc/{process.pid}/task").iterdir()))

    assert threads(6) >= threads(1) + 5
