"""llama.cpp with a server of its own: a stand-in program that serves, logs and ends as llama-server does."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gog_edge.bench.subject import Words, picture
from gog_edge.errors import BenchError
from gog_edge_peers.create import create
from gog_edge_peers.registry import parse
from gog_edge_peers.worker_subject import WorkerSubject
from gog_edge_peers.workers import run_llama_cpp, wire

SERVER = """
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

given = dict(zip(sys.argv[1::1], sys.argv[2::1]))
if "broken" in given["-m"]:
    sys.exit("error: the file is damaged")
ready = time.monotonic() + 0.2

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        return

    def reply(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if time.monotonic() < ready:
            return self.reply({"error": {"message": "Loading model", "code": 503}}, 503)
        self.reply({"build_info": "b1", "data": [{"id": given["--alias"]}], "status": "ok"})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.reply({"tokens": request["content"].split()})
        content = request["messages"][-1]["content"]
        if not isinstance(content, str) and any(p["type"] == "image_url" for p in content):
            print("0.01.000.000 I slot encode_mtmd_: id  0 | encoding mtmd batch from idx = 4", file=sys.stderr)
            print("0.01.250.500 I decoding image batch 1/2, n_tokens_batch = 8", file=sys.stderr)
            print("0.01.350.500 I decoding image batch 2/2, n_tokens_batch = 8", file=sys.stderr, flush=True)
        time.sleep(0.05)
        n = request["max_tokens"]
        timings = {"cache_n": 0, "prompt_n": 20, "prompt_ms": 400.0, "predicted_n": n, "predicted_ms": 30.0}
        self.send_response(200)
        self.end_headers()
        event = {"choices": [{"delta": {"content": "ok"}}], "timings": timings}
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\ndata: [DONE]\\n\\n")

ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program in the place of llama-server."""
    (tmp_path / "server.py").write_text(SERVER)
    path = tmp_path / "llama-server"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "server.py"}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gguf"
    made.mkdir()
    for name, size in (("model-f16.gguf", 30), ("model-q4_0.gguf", 10), ("mmproj-f16.gguf", 5)):
        (made / name).write_bytes(bytes(size))
    return made


@pytest.fixture
def subject(program: Path, folder: Path) -> Iterator[WorkerSubject]:
    made = create(parse("llama.cpp")[0], {"llama.cpp": str(folder)}, {}, 2, {"llama.cpp": str(program)})
    yield made
    made.close()


def test_the_server_is_started_clocked_and_ended(subject: WorkerSubject) -> None:
    seconds = subject.load()
    assert seconds >= 0.2  # it was not ready before
    assert subject.about == "llama.cpp b1, model model-q4_0.gguf, mmproj-f16.gguf, 2 threads"
    servers = [p for p in psutil.Process().children(recursive=True) if "--alias" in p.cmdline()]
    assert servers
    with_picture = subject.turn([picture(64, 48, 1), Words(9, 1)], 4)
    assert with_picture.stages == pytest.approx({"encode": 0.2505, "prefill": 0.1495, "decode": 0.03})
    text = subject.turn([Words(9, 1)], 4)
    assert text.stages == pytest.approx({"prefill": 0.4, "decode": 0.03})
    assert text.resident > 0 and (text.peak > 0 or not sys.platform.startswith("linux"))
    subject.close()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in servers)


def test_a_server_that_ends_while_it_loads_is_out_with_its_words(subject: WorkerSubject, folder: Path) -> None:
    (folder / "broken.gguf").write_bytes(b"")
    with pytest.raises(BenchError, match=r"ended while it loaded: error: the file is damaged"):
        subject.load()


def test_what_is_missing_is_named(program: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = parse("llama.cpp")[0]
    nothing = create(wanted, {"llama.cpp": str(folder)}, {}, 0, {"llama.cpp": str(folder / "none")})
    try:
        with pytest.raises(BenchError, match=r"can't be run: .*; --peer-program llama\.cpp=PATH"):
            nothing.load()
    finally:
        nothing.close()
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(wire.WorkerError, match="not on the PATH"):
        run_llama_cpp.LlamaCpp().load(str(folder), {})
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(wire.WorkerError, match="no GGUF file of a language model"):
        run_llama_cpp.gguf_files(folder)


def test_a_log_without_times_tells_nothing() -> None:
    told = textwrap.dedent("""
        0.38.097.023 I slot encode_mtmd_: id  0 | task 2 | encoding mtmd batch from idx = 4, n_chunks = 1
        1.10.896.468 I decoding image batch 1/1, n_tokens_batch = 768
        1.27.437.206 I image decoded (batch 1/1) in 16541 ms
    """).splitlines()
    assert run_llama_cpp.encoding_seconds(told) == pytest.approx(32.799445)
    assert run_llama_cpp.encoding_seconds([line[13:] for line in told]) == 0.0
    assert run_llama_cpp.encoding_seconds(told[:2]) == 0.0
