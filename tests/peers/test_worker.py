"""A worker process that behaves, and workers that crash, hang, talk rubbish or miss something."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from gog_edge.bench.subject import Words, picture
from gog_edge.bench.suite import cells, load_subjects, run_conversation
from gog_edge.bench.workloads import TurnSpec, Workload
from gog_edge.errors import BenchError
from gog_edge_peers.worker_subject import WorkerSubject

# Answers as a peer would; the fourth turn, or "seed" 4, makes it misbehave in the way that its model names.
WORKER = """
import json, os, sys, time
way, turns = "", 0
for line in sys.stdin:
    request = json.loads(line)
    reply = {"ok": True}
    if request["op"] == "load":
        way = request["model"]
        if way in ("package", "model", "failed"):
            reply = {"ok": False, "kind": way, "error": "no such thing"}
        else:
            reply |= {"seconds": 1.5, "about": "fake 1", "peak": 1000}
    if request["op"] == "turn":
        words = [p for p in request["parts"] if "words" in p]
        sizes = [os.path.getsize(p["image"]) for p in request["parts"] if "image" in p]
        turns += 1
        if turns == 4 or any(p["seed"] == 4 for p in words):
            if way == "crash":
                print("Traceback: the model broke", file=sys.stderr)
                sys.exit(7)
            if way == "hang":
                time.sleep(60)
            if way == "rubbish":
                print("hello", flush=True)
                continue
        n = sum(p["words"] for p in words)
        reply |= {"total": 0.5, "stages": {"decode": 0.2}, "new_tokens": n + sum(sizes), "generated": request["tokens"],
                  "computed": n, "peak": 2000}
    print(json.dumps(reply), flush=True)
    if request["op"] == "close":
        break
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that runs the worker above, whatever it is asked to run."""
    (tmp_path / "worker.py").write_text(WORKER)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "worker.py"}"\n')
    path.chmod(0o755)
    return path


def subject(python: Path, way: str = "fine", **more: float) -> WorkerSubject:
    mends = {"package": "install it", "model": "convert it"}
    return WorkerSubject(way, "any", python, way, mends=mends, **more)


def test_a_turn_goes_there_and_back(python: Path) -> None:
    peer = subject(python)
    try:
        assert peer.load() == 1.5
        assert peer.about == "fake 1"
        peer.reset()
        times = peer.turn([picture(8, 4, 1), Words(5, 2)], 3)
        assert (times.total, times.stages, times.generated) == (0.5, {"decode": 0.2}, 3)
        assert times.new_tokens == 5 + 8 * 4 * 3  # the picture was there as raw bytes
        assert (times.computed, times.peak) == (5, 2000)
        assert times.resident > 1 << 20
    finally:
        peer.close()
    with pytest.raises(BenchError, match="not loaded"):
        peer.reset()


@pytest.mark.parametrize(("way", "said"), [("package", "install it"), ("model", "convert it"), ("failed", "no such")])
def test_what_is_missing_names_the_mend(python: Path, way: str, said: str) -> None:
    peer = subject(python, way)
    skipped: dict[str, str] = {}
    try:
        loaded, seconds = load_subjects([peer], skipped)
    finally:
        peer.close()
    assert (loaded, seconds) == ([], [])
    assert said in skipped[way]


@pytest.mark.parametrize(
    ("way", "said"),
    [("crash", r"code 7: Traceback: the model broke"), ("hang", r"no answer to 'turn' within"), ("rubbish", "no JSON")],
)
def test_a_worker_that_goes_wrong_is_out_and_the_others_go_on(python: Path, way: str, said: str) -> None:
    talk = Workload("talk", "a test", (TurnSpec(words=4, tokens=2),), repeats=1, warmup=3)
    peers = [subject(python), subject(python, way, turn_seconds=1.0)]
    try:
        loaded, seconds = load_subjects(peers, {})
        assert len(loaded) == 2
        assert [c.samples for c in seconds] == [(1.5,), (1.5,)]
        start = time.monotonic()
        samples, failed = run_conversation(talk, loaded)  # the last run is its fourth turn
        assert time.monotonic() - start < 30
        assert list(samples) == ["fine"]
        with pytest.raises(BenchError, match=said):
            raise BenchError(failed[way])
        with pytest.raises(BenchError, match=said):  # and it says so again
            peers[1].reset()
        stages = {c.stage for c in cells(talk, samples, None, None)}
        assert {
            "total",
            "decode",
            "first token",
            "new tokens",
            "computed tokens",
            "resident",
            "peak resident",
        } <= stages
    finally:
        for peer in peers:
            peer.close()


def test_an_interpreter_that_is_none_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="can't be run"):
        subject(tmp_path / "none").load()


def test_a_real_worker_says_which_package_is_missing(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    name = "run_onnxruntime_genai"
    try:
        import onnxruntime_genai  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("onnxruntime-genai is installed here")
    peer = WorkerSubject("ort", name, Path(sys.executable), str(tmp_path), mends={"package": "install it"})
    try:
        with pytest.raises(BenchError, match=r"onnxruntime_genai.*install it"):
            peer.load()
        with pytest.raises(BenchError, match="not a folder"):
            WorkerSubject("ort", name, Path(sys.executable), str(tmp_path / "none")).load()
    finally:
        peer.close()
