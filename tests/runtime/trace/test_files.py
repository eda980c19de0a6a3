"""Traces as files: the ending says which kind; the one for Perfetto nests, names its tracks and holds no secret."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.runtime.telemetry import Span, Trace
from gog_edge.runtime.trace.files import save_trace
from gog_edge.runtime.trace.perfetto import perfetto_events
from gog_edge.types import Hit
from tests.agent.test_loop import ANSWER, GAZE, TEXT
from tests.runtime.conftest import MakeAgent
from tests.runtime.fakes import FakeProvider
from tests.runtime.trace.test_html import traced


def tracks(document: dict[str, Any]) -> dict[int, str]:
    named = [e for e in document["traceEvents"] if e["name"] == "thread_name"]
    assert len({e["tid"] for e in named}) == len(named)
    return {e["tid"]: e["args"]["name"] for e in named}


def check(document: dict[str, Any]) -> None:
    """What Chrome's Trace Event Format asks for, and that spans of a track nest or follow each other."""
    spans = defaultdict(list)
    for event in document["traceEvents"]:
        assert {"ph", "name", "pid", "tid", "args"} <= set(event) and event["ph"] in ("M", "X", "i")
        assert event["ph"] == "M" or event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            spans[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] == "i":
            assert event["s"] in ("t", "p")
    known = tracks(document)
    assert set(spans) <= set(known)
    for found in spans.values():
        for number, (start, end) in enumerate(found):
            for other_start, other_end in found[number + 1 :]:
                apart = other_start >= end - 1e-3 or other_end <= start + 1e-3
                nested = (other_start >= start and other_end <= end + 1e-3) or (
                    other_start <= start and other_end >= end
                )
                assert apart or nested


def test_a_question_for_perfetto(make_agent: MakeAgent, frame: Frame) -> None:
    trace = Trace()
    make_agent([f"{GAZE}\n{TEXT}", ANSWER], [FakeProvider([Hit("a", "fish")])]).ask(frame, "What?", trace=trace)
    document = json.loads(json.dumps(perfetto_events(trace)))
    check(document)
    events = document["traceEvents"]
    assert events[0]["args"]["name"] == "gog-edge: What?"
    assert {"steps", "tokens", "MainThread"} <= set(tracks(document).values())
    whole = [e for e in events if e["ph"] == "X"]
    steps = [t for t, name in tracks(document).items() if name.startswith("steps")]
    assert [e["name"] for e in whole if e["tid"] in steps] == ["1 gaze + text_search", "2 answer"]
    assert len(whole) == len(trace.spans) + 2
    assert sum(e["dur"] for e in whole if e["name"] == "decode") == pytest.approx(
        1e6 * trace.seconds_by_stage()["decode"]
    )
    tokens = "".join(e["name"] for e in events if e["ph"] == "i" and "ids" in e["args"])
    assert tokens == "".join(t.text for t in trace.tokens)


def test_work_that_overlaps_gets_tracks_of_its_own() -> None:
    trace = Trace("q")
    for start, end in ((0.0, 1.0), (0.2, 0.4), (0.5, 1.5), (1.0, 1.2), (0.6, 2.0), (2.0, 3.0)):
        trace.spans.append(Span("search", start, end, 0, "gog-search"))
    document = perfetto_events(trace)
    check(document)
    assert sorted(tracks(document).values()) == ["gog-search", "gog-search 2", "gog-search 3"]


def test_no_secret_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cret-value")
    trace = Trace("q")
    with trace.span("search", url="https://me:pw@h/?api_key=abc", said="s3cret-value"):
        trace.note("s3cret-value")
    for name in ("t.perfetto.json", "t.json"):
        save_trace(trace, tmp_path / name)
        text = (tmp_path / name).read_text("utf-8")
        assert "s3cret-value" not in text and "me:pw" not in text and "abc" not in text


def test_the_ending_says_which_kind(tmp_path: Path) -> None:
    for name, begins in (
        ("t.html", "<!doctype html>"),
        ("t.json", '{\n "format"'),
        ("t.perfetto.json", '{"traceEvents"'),
    ):
        save_trace(traced(), tmp_path / name)
        assert (tmp_path / name).read_text("utf-8").startswith(begins)
    check(json.loads((tmp_path / "t.perfetto.json").read_text("utf-8")))
    for name in ("t.txt", "t", "html"):
        with pytest.raises(UsageError, match=r"must end in \.html, \.perfetto\.json or \.json"):
            save_trace(traced(), tmp_path / name)
