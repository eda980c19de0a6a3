"""`gog-edge serve` as a process: it listens, answers, and ends with Ctrl-C; a taken port is one line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
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


def test_it_serves_until_it_is_interrupted(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "gog_edge", "serve", "--bundle", str(tiny_bundle), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("serving "))
        address = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(f"{address}/healthz", timeout=60) as reply:
            assert json.load(reply)["bundle"] == tiny_bundle.name
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(60) in (0, 130)
    finally:
        process.kill()
    assert "Traceback" not in err
