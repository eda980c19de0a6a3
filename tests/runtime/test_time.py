"""Deadlines, cancellation, early work, threads."""

from __future__ import annotations

import threading
import time

import pytest

from gog_edge.runtime.budget import Budget, DeadlineReached
from gog_edge.runtime.frame import Frame
from gog_edge.runtime.options import NO_PREFETCH
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import AnswerEvent, Hit, StopReason, TokenEvent
from tests.runtime.conftest import MakeAgent, picture
from tests.runtime.fakes import FakeProvider, wall_time
from tests.runtime.test_loop import ANSWER, GAZE, GLANCE, HERON, TEXT

LONG = "<think>\n" + "la le li lo lu " * 60 + "\n</think>\n<answer>late</answer>"


@wall_time
def test_a_deadline_leaves_time_for_a_forced_answer(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG, "<answer>in time</answer>"], step_s=0.01)
    answer = agent.ask(frame, "q", deadline=1.2)
    assert (answer.text, answer.stop) == ("in time", StopReason.DEADLINE)
    assert answer.seconds < 1.5


@wall_time
def test_a_slow_search_is_given_up_for_the_answer(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([TEXT, "<answer>guess</answer>"], [FakeProvider([HERON], wait_s=5)], step_s=0.002)
    answer = agent.ask(frame, "q", deadline=1.5)
    assert (answer.text, answer.stop) == ("guess", StopReason.DEADLINE)
    assert answer.seconds < 1.8


@wall_time
def test_an_answer_that_is_being_written_goes_on(make_agent: MakeAgent, frame: Frame) -> None:
    words = "".join(f"{i} " for i in range(1000, 1060))
    agent = make_agent([f"<answer>{words}</answer>"], step_s=0.03, speculation=Speculation(max_draft=0))
    answer = agent.ask(frame, "q", deadline=2.0)
    assert answer.stop is StopReason.DEADLINE
    assert len(answer.text) > 20 and words.startswith(answer.text)
    assert len(answer.steps) == 1
    assert answer.seconds < 2.6


@wall_time
def test_no_time_at_all_gives_an_empty_answer_that_says_so(make_agent: MakeAgent, frame: Frame) -> None:
    answer = make_agent([ANSWER], row_s=0.05).ask(frame, "q", deadline=0.2)
    assert (answer.text, answer.stop) == ("", StopReason.DEADLINE)
    assert answer.seconds < 0.6


def test_results_that_can_not_be_read_in_time_are_left_out(make_agent: MakeAgent, frame: Frame) -> None:
    long = Hit("t", "word " * 100, "s")
    trace = Trace()
    agent = make_agent([TEXT, "<answer>short</answer>"], [FakeProvider([long] * 3)])
    with agent.session(frame) as conversation:
        conversation._pace.prefill_s = 1.0  # as if measured: a machine that reads one token a second
        answer = conversation.ask("q", deadline=20, trace=trace)
    assert (answer.text, answer.stop) == ("short", StopReason.DEADLINE), trace.notes
    assert any("no time to read" in text for _, text in trace.notes)
    assert len(answer.steps[0].observations[0].hits) == 3  # the step tells what was found all the same


@wall_time
def test_results_that_were_read_stay_when_a_later_turn_runs_out_of_time(make_agent: MakeAgent, frame: Frame) -> None:
    with make_agent([TEXT, LONG, "<answer>heron</answer>"], [FakeProvider([HERON])], step_s=0.01).session(
        frame
    ) as conversation:
        answer = conversation.ask("q", deadline=3.5)
        text = conversation.session.model.tokenizer.decode(conversation.session.tokens)
    assert (answer.text, answer.stop) == ("heron", StopReason.DEADLINE)
    assert len(answer.steps) == 3
    assert "The grey heron eats fish." in text
    assert answer.evidence == (HERON,)


@wall_time
def test_cancel_from_another_thread(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG], step_s=0.01)
    budget = Budget()
    threading.Timer(0.4, budget.cancel).start()
    start = time.monotonic()
    answer = agent.ask(frame, "q", budget=budget)
    assert answer.stop is StopReason.CANCELLED
    assert time.monotonic() - start < 0.8
    assert make_agent([ANSWER]).ask(frame, "q").text == "fish"


@wall_time
def test_cancel_interrupts_a_search_and_a_prefill(make_agent: MakeAgent, frame: Frame) -> None:
    for agent in (
        make_agent([TEXT, ANSWER], [FakeProvider(wait_s=5)]),
        make_agent([ANSWER], row_s=0.1),
        make_agent([ANSWER], encode_s=5),
    ):
        threading.Timer(0.3, agent.cancel).start()
        start = time.monotonic()
        assert agent.ask(frame, "q").stop is StopReason.CANCELLED
        assert time.monotonic() - start < 1.0


def test_closing_the_stream_cancels(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG], step_s=0.005)
    events = agent.stream(frame, "q")
    assert isinstance(next(events), TokenEvent)
    events.close()  # type: ignore[attr-defined]
    assert agent._running == set()
    assert make_agent([ANSWER]).ask(frame, "q").text == "fish"


@wall_time
def test_the_glance_is_hidden_behind_the_first_turn(make_agent: MakeAgent, frame: Frame) -> None:
    think = "<think>\n" + "la " * 40 + "\n</think>\n"
    provider = FakeProvider([HERON], wait_s=0.4)
    slow = make_agent([think + GLANCE, ANSWER], [provider], step_s=0.005, prefetch=NO_PREFETCH).ask(frame, "q")
    fast = make_agent([think + GLANCE, ANSWER], [provider], step_s=0.005).ask(frame, "q")
    assert fast.text == slow.text == "fish"
    assert fast.seconds < slow.seconds - 0.2


@wall_time
def test_the_crop_is_encoded_while_the_call_is_still_being_written(make_agent: MakeAgent, frame: Frame) -> None:
    trace = Trace()
    agent = make_agent([GAZE, ANSWER], [FakeProvider([HERON])], step_s=0.01, encode_s=0.15)
    answer = agent.ask(frame, "q", trace=trace)
    assert (answer.usage.encoded_images, answer.usage.cached_images) == (2, 0)
    crop = [s for s in trace.spans if s.stage == "encode"][1]
    decode = [s for s in trace.spans if s.stage == "decode"]
    assert crop.thread != decode[0].thread
    assert any(d.start < crop.end and d.end > crop.start for d in decode)


def test_a_label_that_a_provider_ignores_does_not_stop_the_early_search(make_agent: MakeAgent, frame: Frame) -> None:
    provider = FakeProvider([HERON], use_label=False)
    make_agent([GAZE, ANSWER], [provider], step_s=0.003).ask(frame, "q")
    assert len([q for kind, q in provider.asked if q.region is not None]) == 1


def test_many_threads_on_one_agent(make_agent: MakeAgent) -> None:
    agent = make_agent([GAZE, TEXT, ANSWER], [FakeProvider([HERON], wait_s=0.01)])
    frames = [picture(i, 150 + 7 * i, 130) for i in range(4)]
    got: dict[int, str] = {}

    def ask(i: int) -> None:
        for _ in range(3):
            answer = agent.ask(frames[i % 4], f"question {i}")
            got[i] = answer.text
            assert len(answer.steps) == 3

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert got == dict.fromkeys(range(8), "fish")
    assert agent.model.engine.vision.runs == 8  # type: ignore[attr-defined]  # four frames, four crops, each once


def test_one_conversation_serialises_its_threads(make_agent: MakeAgent, frame: Frame) -> None:
    with make_agent([ANSWER], step_s=0.002).session(frame) as conversation:
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda i=i: texts.append(conversation.ask(f"q{i}").text))  # type: ignore[misc]
            for i in range(4)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
    assert texts == ["fish"] * 4


def test_budget_nesting() -> None:
    outer = Budget()
    inner = Budget(parent=outer)
    inner.cancel()
    outer.check()
    assert inner.cancelled and not outer.cancelled
    again = Budget(parent=outer)
    fired = threading.Event()
    with again.on_stop(fired.set):
        outer.cancel()
    assert fired.is_set() and again.cancelled
    with pytest.raises(DeadlineReached), Budget(0.01) as short:
        time.sleep(0.03)
        short.check()


def test_budget_with_a_given_clock() -> None:
    now = [0.0]
    budget = Budget(2.0, clock=lambda: now[0])
    budget.check()
    now[0] = 1.5
    assert budget.remaining() == 0.5
    now[0] = 2.0
    with pytest.raises(DeadlineReached):
        budget.check()


def test_stream_does_nothing_before_it_is_read(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER])
    events = agent.stream(frame, "q")
    assert agent.model.engine.decoder.runs == []  # type: ignore[attr-defined]
    assert isinstance(list(events)[-1], AnswerEvent)
