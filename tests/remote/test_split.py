"""A small policy here, and a server for what it is unsure of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.agent.split import SplitAgent, SplitRule, load_split
from gog_edge.errors import EngineError, UsageError
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Answer, NoticeEvent, StopReason
from tests.remote.stand_in import Reply, StandIn
from tests.remote.test_turns import ANSWER

OTHER = ANSWER.replace("Lima", "Quito")


@pytest.fixture
def pair(server: StandIn, open_agent: Callable[..., Any]) -> SplitAgent:
    """Both on the stand-in, which answers in turn."""
    return SplitAgent(open_agent(), open_agent(retries=0))


def test_a_sure_answer_stays_here(server: StandIn, pair: SplitAgent, photo: Path) -> None:
    server.say(ANSWER)
    assert pair.ask(photo, "What is it?").text == "Lima"
    assert len(server.requests) == 1


def test_unknown_goes_up(server: StandIn, pair: SplitAgent, photo: Path) -> None:
    server.say("x</think>\n<answer> Unknown.</answer>", OTHER)
    trace = Trace()
    *events, last = pair.stream(photo, "What is it?", trace=trace)
    assert last.answer.text == "Quito"  # type: ignore[union-attr]
    assert any(isinstance(e, NoticeEvent) and "the server is asked" in e.text for e in events)
    assert any("escalated" in text for _, text in trace.notes)


def test_so_does_no_answer(server: StandIn, pair: SplitAgent, photo: Path) -> None:
    empty = "x</think>\n<answer></answer>"
    server.say(empty, "</answer>", OTHER)
    assert pair.ask(photo, "What is it?", max_turns=1).text == "Quito"


def test_a_server_that_fails_leaves_the_answer_from_here(server: StandIn, pair: SplitAgent, photo: Path) -> None:
    server.say("x</think>\n<answer> Unknown</answer>")
    server.replies.append(Reply(status=500, error="down"))
    assert pair.ask(photo, "What is it?").text == "Unknown"


def test_an_unlikely_token_is_doubt() -> None:
    sure, rule = Answer("Lima", StopReason.ANSWERED), SplitRule(-0.5)
    assert rule.doubt(sure, -0.4) == "" == rule.doubt(sure, None)
    assert "-0.60" in rule.doubt(sure, -0.6)
    for wrong in ({"below": 0.1}, {"share": 0.0}, {"share": 1.0}, {"below": float("nan")}):
        with pytest.raises(UsageError):
            SplitRule(**wrong)


def test_the_policy_here_measures_itself_and_the_server_is_asked(
    server: StandIn, tiny_bundle: Path, photo: Path
) -> None:
    """A policy of random weights is never sure; what it measures is the softmax of its own logits."""
    server.say(*["x</think>\n<answer> Quito</answer>"] * 3)
    options = RunOptions(grammar="off", turn_tokens=8, max_turns=1)
    with load_split(tiny_bundle, escalate=f"openai:{server.url}", options=options) as agent:
        trace = Trace()
        assert agent.ask(photo, "What is it?", trace=trace).text == "Quito"
        found = trace.meta["confidence"]
        assert found["least"] <= found["mean"] < 0
    with gog_edge.load(tiny_bundle, options=options) as agent:
        agent.ask(photo, "What is it?", trace=(trace := Trace()))
        assert "confidence" not in trace.meta
    with pytest.raises(EngineError):
        load_split(tiny_bundle, escalate="openai:http://127.0.0.1:9/v1")
