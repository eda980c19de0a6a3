"""Servers that are spoken to as OpenAI's: a stand-in on this machine with llama.cpp's wire format, and a plain one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.result import Report
from gog_edge.bench.subject import Words, picture
from gog_edge.bench.suite import cells, run_conversation
from gog_edge.bench.workloads import TurnSpec, Workload
from gog_edge.cli.main import run
from gog_edge.errors import BenchError
from gog_edge_peers.create import create
from gog_edge_peers.registry import parse
from gog_edge_peers.worker_subject import WorkerSubject

IMAGE_TOKENS = 12
TALK = Workload("talk", "a test", (TurnSpec(((64, 48),), 9, 4), TurnSpec(words=6, tokens=3)), repeats=2)


class StandIn(ThreadingHTTPServer):
    """Counts tokens as words, keeps the longest common prefix of messages as its prompt cache.

    `llama`: speak llama.cpp's dialect (/props, /tokenize, timings), else only what OpenAI documents. `writes`: tokens
    that it writes whatever is asked, None for what is asked.
    """

    daemon_threads = True

    def __init__(self, *, llama: bool = True, writes: int | None = None, error: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.llama, self.writes, self.error = llama, writes, error
        self.asked: list[dict[str, Any]] = []
        self.cached: list[Any] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/props" and self.server.llama:
            return self._json({"build_info": "b9999-test", "total_slots": 1, "modalities": {"vision": True}})
        if self.path == "/v1/models":
            return self._json({"object": "list", "data": [{"id": "tiny.gguf", "object": "model"}]})
        return self._json({"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, 404)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self._json({"tokens": list(range(len(request["content"].split())))})
        assert self.path == "/v1/chat/completions"
        if self.server.error:
            return self._json({"error": {"code": 500, "message": self.server.error, "type": "server_error"}}, 500)
        return self._complete(request)

    def _complete(self, request: dict[str, Any]) -> None:
        server = self.server
        server.asked.append(request)
        count = request["max_tokens"] if server.writes is None else server.writes
        prompt = sum(_tokens(m) for m in request["messages"])
        same = 0
        for old, new in zip(server.cached, request["messages"]):
            if old != new:
                break
            same += _tokens(new)
        server.cached = [*request["messages"], {"role": "assistant", "content": " ".join(["ok"] * count)}]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        for n in range(count):
            self._event({"choices": [{"index": 0, "delta": {"content": "ok" if n == 0 else " ok"}}]})
        self._event({"choices": [{"finish_reason": "length", "index": 0, "delta": {}}]})
        last: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count}}
        if server.llama:
            last["usage"]["prompt_tokens_details"] = {"cached_tokens": same}
            last["timings"] = {
                "cache_n": same, "prompt_n": prompt - same, "prompt_ms": 0.3, "prompt_per_token_ms": 1.0,
                "prompt_per_second": 1000.0, "predicted_n": count, "predicted_ms": 0.2,
                "predicted_per_token_ms": 5.0, "predicted_per_second": 200.0,
            }  # fmt: skip
        self._event(last)
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _tokens(message: dict[str, Any]) -> int:
    content = message["content"]
    if isinstance(content, str):
        return len(content.split())
    return sum(len(p["text"].split()) if p["type"] == "text" else IMAGE_TOKENS for p in content)


@pytest.fixture
def serve() -> Iterator[Callable[..., StandIn]]:
    started: list[StandIn] = []

    def start(**how: Any) -> StandIn:
        started.append(StandIn(**how))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def peer(name: str, url: str) -> WorkerSubject:
    return create(parse(f"{name}:{url}")[0], {}, {})


def test_llama_cpp_keeps_its_cache_and_tells_stages_apart(serve: Callable[..., StandIn]) -> None:
    server = serve()
    subject = peer("llama.cpp", server.url)
    try:
        subject.load()
        assert subject.about == "llama.cpp b9999-test, model tiny.gguf"
        first = subject.turn([picture(64, 48, 1), Words(9, 1)], 4)
        assert (first.new_tokens, first.computed, first.generated) == (9 + IMAGE_TOKENS, 9 + IMAGE_TOKENS, 4)
        assert first.stages == {"decode": pytest.approx(2e-4)}  # the prompt's time holds the picture's encoding
        second = subject.turn([Words(6, 2)], 3)
        assert (second.new_tokens, second.computed) == (6, 6)
        assert second.stages == {"prefill": pytest.approx(3e-4), "decode": pytest.approx(2e-4)}
        assert second.total > 0
        asked = server.asked[-1]
        assert asked["cache_prompt"] is True and asked["ignore_eos"] is True and asked["stream"] is True
        assert [m["role"] for m in asked["messages"]] == ["user", "assistant", "user"]
        image = asked["messages"][0]["content"][0]["image_url"]["url"]
        assert image.startswith("data:image/bmp;base64,Qk")  # "BM"
        subject.reset()
        again = subject.turn([Words(6, 3)], 3)
        assert again.new_tokens == 6
        assert len(server.asked[-1]["messages"]) == 1
    finally:
        subject.close()


def test_any_other_server_is_clocked_by_what_arrives(serve: Callable[..., StandIn]) -> None:
    server = serve(llama=False)
    subject = peer("openai", server.url)
    try:
        subject.load()
        times = subject.turn([picture(16, 16, 1), Words(9, 1)], 4)
        assert (times.new_tokens, times.computed, set(times.stages)) == (9 + IMAGE_TOKENS, 0, {"decode"})
        url = server.asked[-1]["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/png;base64,iVBOR")
        assert "cache_prompt" not in server.asked[-1]
    finally:
        subject.close()


@pytest.mark.parametrize(
    ("how", "said"),
    [({"writes": 2}, "does not honour ignore_eos"), ({"writes": 0}, "no usage"), ({"error": "no slot"}, "no slot")],
)
def test_a_server_that_does_not_do_the_work_is_out(
    serve: Callable[..., StandIn], how: dict[str, Any], said: str
) -> None:
    subject = peer("llama.cpp", serve(**how).url)
    try:
        with pytest.raises(BenchError, match=said):
            subject.load()
            subject.turn([Words(9, 1)], 4)
    finally:
        subject.close()


def test_no_server_names_the_mend() -> None:
    subject = peer("llama.cpp", "http://127.0.0.1:9/v1")
    try:
        with pytest.raises(BenchError, match=r"no server answers at http://127\.0\.0\.1:9 .*you started"):
            subject.load()
    finally:
        subject.close()


def test_peers_run_interleaved_with_ours_and_ratios_come_out(serve: Callable[..., StandIn], tiny_bundle: Path) -> None:
    ours, theirs = LocalSubject(tiny_bundle), peer("llama.cpp", serve().url)
    try:
        ours.load()
        theirs.load()
        samples, failed = run_conversation(TALK, [ours, theirs])
        assert failed == {}
        found = tuple(cells(TALK, samples, None, None))
        ratios = {mine.stage: r.p50 for mine, _, r in Report("gog-edge-bench", "now", {}, {}, {}, found).ratios()}
        assert {"total", "turn 1 first token", "turn 2 prefill", "turn 2 decode"} <= set(ratios)
        new = {c.subject: c.samples for c in found if c.stage == "turn 2 new tokens"}
        assert new["gog-edge"] == new["llama.cpp"]  # equal work, where it can be made equal; nothing to be better at
        assert "turn 2 new tokens" not in ratios
        pages = {(c.subject, c.stage) for c in found}
        assert ("llama.cpp", "resident") not in pages  # the stand-in runs in this very process: not to be told apart
    finally:
        ours.close()
        theirs.close()


def test_the_command_compares_and_says_what_is_missing(
    serve: Callable[..., StandIn], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = f"llama.cpp:{serve().url},openvino-genai"
    out = tmp_path / "report.json"
    options = ["--bundle", str(tiny_bundle), "--compare", compare, "--out", str(out)]
    assert run(["bench", "prefill", *options, "--repeats", "1", "--no-roofline"]) == 0
    text = capsys.readouterr().out
    assert "against peers" in text and "llama.cpp" in text
    assert "not measured: openvino-genai: openvino-genai needs its model" in text
    report = json.loads(out.read_text())
    assert report["machine"]["peers"] == {"llama.cpp": "llama.cpp b9999-test, model tiny.gguf"}
    assert {c["subject"] for c in report["cells"]} == {"gog-edge", "llama.cpp"}
