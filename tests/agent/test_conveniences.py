"""From asyncio, many at once, warmed up: the same answers as `ask`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gog_edge import AskRequest
from gog_edge.deadline import Budget
from gog_edge.errors import ImageError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.types import ActionEvent, AnswerEvent, Event, Hit, StopReason, TokenEvent
from tests.agent.test_loop import ANSWER, GLANCE, TEXT
from tests.runtime.conftest import MakeAgent, picture
from tests.runtime.fakes import FakeProvider

LONG = "<think>\n" + "la " * 2000


def test_the_async_twins_give_the_same(make_agent: MakeAgent, frame: Frame) -> None:
    script = [TEXT, ANSWER]
    plain = list(make_agent(script, [FakeProvider([Hit("a", "fish")])]).stream(frame, "q"))
    agent = make_agent(script * 3, [FakeProvider([Hit("a", "fish")])])

    async def ask() -> tuple[list[Event], str, str]:
        events = [event async for event in agent.astream(frame, "q")]
        answer = await agent.aask(frame, "q")
        with agent.session(frame) as session:
            return events, answer.text, (await session.aask("q")).text

    events, text, third = asyncio.run(ask())
    assert [type(e) for e in events] == [type(e) for e in plain]
    assert [e.text for e in events if isinstance(e, TokenEvent)] == [e.text for e in plain if isinstance(e, TokenEvent)]
    assert text == third == "fish"
    assert any(isinstance(e, ActionEvent) for e in events) and isinstance(events[-1], AnswerEvent)


def test_cancelling_a_task_cancels_its_question(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG], step_s=0.002)
    budget = Budget()

    async def ask() -> None:
        task = asyncio.create_task(agent.aask(frame, "q", budget=budget))
        while not agent._running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert agent._running == set()  # it has ended, not only been told

    asyncio.run(ask())
    assert not budget.cancelled  # the caller's own goes on


def test_closing_an_async_stream_cancels_its_question(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG], step_s=0.002)

    async def ask() -> None:
        events = agent.astream(frame, "q")
        async for event in events:
            if isinstance(event, TokenEvent):
                break
        await events.aclose()  # type: ignore[attr-defined]
        assert agent._running == set()

    asyncio.run(ask())


def test_what_ask_raises_is_raised_from_asyncio(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER])
    with pytest.raises(UsageError, match="a deadline"):
        agent.aask(frame, "q", deadline="soon")
    with pytest.raises(ImageError):
        asyncio.run(agent.aask(b"no picture", "q"))


@pytest.mark.parametrize("at_once", [1, 3])
def test_many_questions_are_answered_in_their_order(make_agent: MakeAgent, at_once: int) -> None:
    agent = make_agent([ANSWER] * 20)
    fetched: list[int] = []

    def requests() -> Iterator[AskRequest]:
        for n in range(8):
            fetched.append(n)
            yield AskRequest(picture(n), f"question {n}")

    answers = agent.ask_many(requests(), at_once=at_once)
    assert next(answers).text == "fish" and len(fetched) == at_once  # fetched when their turn comes
    assert [a.text for a in answers] == ["fish"] * 7
    assert agent._running == set()


def test_who_stops_reading_cancels_what_runs(make_agent: MakeAgent) -> None:
    agent = make_agent(lambda question: [ANSWER] if "first" in question else [LONG], step_s=0.002)
    requests = [AskRequest(picture(n), "first" if n == 0 else "q", max_turns=1) for n in range(3)]
    answers = agent.ask_many(requests, at_once=3)
    assert next(answers).text == "fish"
    answers.close()  # type: ignore[attr-defined]
    assert agent._running == set()


def test_an_error_in_the_middle_is_raised_in_its_turn(make_agent: MakeAgent) -> None:
    agent = make_agent([ANSWER] * 9)
    for at_once in (1, 2):
        answers = agent.ask_many([AskRequest(picture(1), "q"), AskRequest(b"?", "q")], at_once=at_once)
        assert next(answers).text == "fish"
        with pytest.raises(ImageError):
            next(answers)
    with pytest.raises(UsageError, match="at_once is 0"):
        agent.ask_many([], at_once=0)


@pytest.mark.parametrize("at_once", [1, 4])
def test_requests_that_break_off_are_answered_up_to_there(make_agent: MakeAgent, at_once: int) -> None:
    def breaks() -> Iterator[AskRequest]:
        yield AskRequest(picture(1), "q")
        raise OSError("the list ended in the middle")

    agent = make_agent([ANSWER] * 9)
    requests: tuple[tuple[Any, type[Exception], str], ...] = (
        (breaks(), OSError, "in the middle"),
        ([AskRequest(picture(2), "q"), "photo.jpg"], UsageError, "not str"),
    )
    for given, error, message in requests:
        answers = agent.ask_many(given, at_once=at_once)
        assert next(answers).text == "fish"
        with pytest.raises(error, match=message):
            next(answers)


def test_warming_up_measures_and_searches_nothing(make_agent: MakeAgent, frame: Frame) -> None:
    provider = FakeProvider([Hit("a", "b")])
    agent = make_agent([ANSWER, GLANCE, ANSWER], [provider])
    assert agent.pace.token_s is None
    assert agent.warm_up((203, 141)) > 0
    assert agent.pace.token_s is not None and agent.pace.prefill_s is not None
    assert provider.asked == []
    assert agent.ask(frame, "q").stop is StopReason.ANSWERED
    with pytest.raises(ImageError):
        agent.warm_up((0, 10))
