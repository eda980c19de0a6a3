"""A call that keeps failing: told once, then stopped; and what is said where nothing is set up to search."""

from __future__ import annotations

import logging

import pytest

from gog_edge.agent.repeats import TOLD
from gog_edge.errors import SearchError
from gog_edge.image.frame import Frame
from gog_edge.types import NoticeEvent, StopReason
from tests.runtime.conftest import MakeAgent
from tests.runtime.fakes import FakeProvider

GLANCE = '<tool_call>\n{"name": "image_search", "arguments": {}}\n</tool_call>'
GAZE = '<tool_call>\n{{"name": "crop_search", "arguments": {{"bbox_2d": [0, 0, {}, 500]}}}}\n</tool_call>'
TEXT = '<tool_call>\n{{"name": "text_search", "arguments": {{"query": "{}"}}}}\n</tool_call>'
ANSWER = "<answer>crane</answer>"


@pytest.mark.parametrize("turn", [GLANCE, TEXT.format("a"), f"{GLANCE}\n{TEXT.format('a')}"])
def test_a_failing_call_is_told_once_and_stopped_at_the_third_time(
    make_agent: MakeAgent, frame: Frame, turn: str
) -> None:
    answer = make_agent([turn] * 9, [FakeProvider(error=SearchError("gone"))]).ask(frame, "q", max_turns=20)
    acted = [s for s in answer.steps if s.observations]
    told = [any(TOLD in o.error + o.action.text for o in s.observations) for s in acted]
    assert told == [False, True, False]
    assert answer.text == "" and answer.stop is StopReason.EXHAUSTED  # the forced turn held the call again


def test_where_nothing_is_set_up_every_call_of_the_kind_is_the_same(make_agent: MakeAgent, frame: Frame) -> None:
    calls = [GAZE.format(side) for side in (100, 200, 300, 400, 500)]
    answer = make_agent([*calls[:3], ANSWER]).ask(frame, "q", max_turns=20)
    assert (answer.text, answer.stop, len(answer.steps)) == ("crane", StopReason.FORCED, 4)


def test_different_calls_and_calls_that_work_are_not_stopped(make_agent: MakeAgent, frame: Frame) -> None:
    calls = [TEXT.format(word) for word in ("a", "b", "c", "d")]
    failing = make_agent([*calls, ANSWER], [FakeProvider(error=SearchError("gone"))]).ask(frame, "q", max_turns=20)
    assert (failing.stop, len(failing.steps)) == (StopReason.ANSWERED, 5)
    working = make_agent([calls[0]] * 4 + [ANSWER], [FakeProvider([])]).ask(frame, "q", max_turns=20)
    assert (working.stop, len(working.steps)) == (StopReason.ANSWERED, 5)


def test_what_is_not_set_up_is_said_before_the_policy_starts(
    make_agent: MakeAgent, frame: Frame, caplog: pytest.LogCaptureFixture
) -> None:
    agent = make_agent([ANSWER])
    with caplog.at_level(logging.WARNING, "gog_edge"):
        first = next(iter(agent.stream(frame, "q")))
        agent.ask(frame, "q")
    assert isinstance(first, NoticeEvent) and "no image search and no text search is set up" in first.text
    assert [r.getMessage() for r in caplog.records] == [first.text]  # once for each agent


def test_nothing_is_said_where_all_is_set_up(make_agent: MakeAgent, frame: Frame) -> None:
    events = list(make_agent([ANSWER], [FakeProvider([])]).stream(frame, "q"))
    assert not any(isinstance(event, NoticeEvent) for event in events)
