"""`gog-edge serve` as a process: it listens, answers, ends with Ctrl-C or SIGTERM, and survives floods of connections;
what is wrong with its options is one line."""

from __future__ import annotations

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
