"""Deadlines, cancellation, early work, threads."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gog_edge
from gog_edge.agent.options import NO_PREFETCH
from gog_edge.deadline import ANSWER_TOKENS, Budget, DeadlineReached
from gog_edge.image.frame import Frame
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import Trace
from gog_edge.search.base import Deadline
from gog_edge.search.resilience import Resilient
from gog_edge.search.web.http import RetryableError
from gog_edge.types import AnswerEvent, Hit, NoticeEvent, StopReason, TokenEvent
from tests.agent.test_loop import ANSWER, GAZE, GLANCE, HERON, TEXT
from tests.agent.virtual_clock import VirtualClock
from tests.runtime.conftest import MakeAgent, picture
from tests.runtime.fakes import FakeProvider

NO_GUESSES = Speculation(max_draft=0)  # a run writes one token, so times can be foretold
LONG = "<think>\n" + "la le li lo lu " * 60 + "\n</think>\n<answer>late</answer>"


def test_a_deadline_leaves_time_for_a_forced_answer(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    agent = make_agent([LONG, "<answer>in time</answer>"], step_s=0.02, speculation=NO_GUESSES)
    answer = agent.ask(frame, "q", deadline=3.0, budget=Budget(clock=clock))
    assert (answer.text, answer.stop) == ("in time", StopReason.DEADLINE)
    assert len(answer.steps) == 2
    assert answer.steps[0].seconds > 2.0  # the policy thought until only the answer's time was left
    assert answer.seconds < 3.0


def test_the_time_kept_for_the_answer_is_what_it_needs(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock
) -> None:
    """A policy whose answer keeps to the tokens that are reserved is never cut short, whatever the deadline."""
    words = " ".join(str(i) for i in range(ANSWER_TOKENS // 5))
    needed = 0.02 * ANSWER_TOKENS
    for deadline in (1.6, 1.93, 5.0):
        agent = make_agent([LONG, f"<answer>{words}</answer>"], step_s=0.02, speculation=NO_GUESSES)
        answer = agent.ask(frame, "q", deadline=deadline, budget=Budget(clock=clock))
        assert (answer.text, answer.stop) == (words, StopReason.DEADLINE), deadline
        assert answer.seconds <= deadline
        kept = deadline - answer.steps[0].seconds
        assert needed <= kept < 1.25 * needed, deadline  # and no more is kept than that


def test_a_slow_search_is_given_up_for_the_answer(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    provider = FakeProvider([HERON], wait_s=5, clock=clock)
    agent = make_agent([TEXT, "<answer>guess</answer>"], [provider], step_s=0.002)
    answer = agent.ask(frame, "q", deadline=1.5, budget=Budget(clock=clock))
    assert (answer.text, answer.stop) == ("guess", StopReason.DEADLINE)
    assert 1.0 < answer.seconds < 1.5
    assert answer.steps[0].observations == ()


def test_a_search_that_comes_back_in_time_is_read(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    provider = FakeProvider([HERON], wait_s=0.5, clock=clock)
    agent = make_agent([TEXT, ANSWER], [provider], step_s=0.002)
    answer = agent.ask(frame, "q", deadline=1.5, budget=Budget(clock=clock))
    assert (answer.text, answer.stop) == ("fish", StopReason.ANSWERED)
    assert answer.evidence == (HERON,)


def test_an_answer_that_is_being_written_goes_on(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    words = "".join(f"{i} " for i in range(1000, 1060))
    agent = make_agent([f"<answer>{words}</answer>"], step_s=0.03, speculation=NO_GUESSES)
    answer = agent.ask(frame, "q", deadline=2.0, budget=Budget(clock=clock))
    assert answer.stop is StopReason.DEADLINE
    assert len(answer.text) > 20 and words.startswith(answer.text)
    assert len(answer.steps) == 1
    assert answer.seconds == pytest.approx(2.0)


def test_no_time_at_all_gives_an_empty_answer_that_says_so(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock
) -> None:
    agent = make_agent([ANSWER], row_s=0.05)
    answer = agent.ask(frame, "q", deadline=0.2, budget=Budget(clock=clock))
    assert (answer.text, answer.stop) == ("", StopReason.DEADLINE)
    assert answer.seconds == pytest.approx(0.2)


def test_a_deadline_holds_on_the_machines_own_clock(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER], row_s=60)
    start = time.monotonic()
    answer = agent.ask(frame, "q", deadline=0.2)
    assert (answer.text, answer.stop) == ("", StopReason.DEADLINE)
    assert 0.2 <= time.monotonic() - start < 30


def test_results_that_can_not_be_read_in_time_are_left_out(make_agent: MakeAgent, frame: Frame) -> None:
    long = Hit("t", "word " * 100, "s")
    trace = Trace()
    agent = make_agent([TEXT, "<answer>short</answer>"], [FakeProvider([long] * 3)])
    with agent.session(frame) as conversation:
        agent.pace.prefill_s = 1.0  # as if measured: a machine that reads one token a second
        answer = conversation.ask("q", deadline=20, trace=trace)
    assert (answer.text, answer.stop) == ("short", StopReason.DEADLINE), trace.notes
    assert any("no time to read" in text for _, text in trace.notes)
    assert len(answer.steps[0].observations[0].hits) == 3  # the step tells what was found all the same


def test_results_that_were_read_stay_when_a_later_turn_runs_out_of_time(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock
) -> None:
    agent = make_agent(
        [TEXT, LONG, "<answer>heron</answer>"], [FakeProvider([HERON])], step_s=0.02, speculation=NO_GUESSES
    )
    with agent.session(frame) as conversation:
        answer = conversation.ask("q", deadline=4, budget=Budget(clock=clock))
        text = conversation.session.model.tokenizer.decode(conversation.session.tokens)
    assert (answer.text, answer.stop) == ("heron", StopReason.DEADLINE)
    assert len(answer.steps) == 3
    assert "The grey heron eats fish." in text
    assert answer.evidence == (HERON,)


def cancel_once(entered: threading.Event, cancel: Callable[[], None]) -> threading.Thread:
    """Cancel from another thread as soon as the fake says that it was entered."""

    def run() -> None:
        if entered.wait(60):
            cancel()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_cancel_from_another_thread(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG], step_s=0.01)
    budget = Budget()
    cancel_once(agent.model.engine.decoder.entered, budget.cancel)  # type: ignore[attr-defined]
    answer = agent.ask(frame, "q", budget=budget)
    assert answer.stop is StopReason.CANCELLED
    assert make_agent([ANSWER]).ask(frame, "q").text == "fish"


@pytest.mark.parametrize("where", ["search", "prefill", "encode"])
def test_cancel_interrupts_what_runs(make_agent: MakeAgent, frame: Frame, where: str) -> None:
    provider = FakeProvider(wait_s=60 if where == "search" else 0.0)
    agent = make_agent(
        [TEXT, ANSWER],
        [provider],
        row_s=60 if where == "prefill" else 0.0,
        encode_s=60 if where == "encode" else 0.0,
        prefetch=NO_PREFETCH,
    )
    engine: Any = agent.model.engine
    entered = {"search": provider.entered, "prefill": engine.decoder.entered, "encode": engine.vision.entered}
    cancel_once(entered[where], agent.cancel)
    start = time.monotonic()
    assert agent.ask(frame, "q").stop is StopReason.CANCELLED
    assert time.monotonic() - start < 30


def test_closing_the_stream_cancels(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([LONG], step_s=0.005)
    events = agent.stream(frame, "q")
    assert isinstance(next(events), NoticeEvent)  # there is nothing to search with
    assert isinstance(next(events), TokenEvent)
    events.close()  # type: ignore[attr-defined]
    assert agent._running == set()
    assert make_agent([ANSWER]).ask(frame, "q").text == "fish"


def test_the_glance_is_hidden_behind_the_first_turn(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    think = "<think>\n" + "la " * 40 + "\n</think>\n"
    provider = FakeProvider([HERON], wait_s=0.4, clock=clock)
    script, budget = [think + GLANCE, ANSWER], Budget(clock=clock)
    plain = {"step_s": 0.02, "speculation": NO_GUESSES, "prefix_cache": False}
    slow = make_agent(script, [provider], prefetch=NO_PREFETCH, **plain).ask(frame, "q", budget=budget)
    fast = make_agent(script, [provider], **plain).ask(frame, "q", budget=budget)
    assert fast.text == slow.text == "fish"
    assert fast.seconds == pytest.approx(slow.seconds - 0.4)


def test_the_crop_is_encoded_while_the_call_is_still_being_written(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock
) -> None:
    trace, budget = Trace(), Budget(clock=clock)
    provider = FakeProvider([HERON])
    plain = {"step_s": 0.05, "encode_s": 0.15, "speculation": NO_GUESSES, "prefix_cache": False}
    late = make_agent([GAZE, ANSWER], [provider], prefetch=NO_PREFETCH, **plain)
    early = make_agent([GAZE, ANSWER], [provider], **plain)
    waited = late.ask(frame, "q", budget=budget)
    answer = early.ask(frame, "q", budget=budget, trace=trace)
    assert (answer.usage.encoded_images, answer.usage.cached_images) == (2, 0)
    assert answer.seconds == pytest.approx(waited.seconds - 0.15)
    crop = [s for s in trace.spans if s.stage == "encode"][1]
    assert crop.thread != next(s for s in trace.spans if s.stage == "decode").thread


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


def test_budget_with_a_given_clock(clock: VirtualClock) -> None:
    budget = Budget(2.0, clock=clock)
    budget.check()
    clock.sleep(1.5)
    assert budget.remaining() == 0.5
    assert Budget(parent=budget).remaining() == 0.5
    clock.sleep(0.5)
    with pytest.raises(DeadlineReached):
        budget.check()


def test_the_clock_interrupts_what_registered(clock: VirtualClock) -> None:
    stop = clock.event()
    with Budget(0.3, clock=clock) as budget, budget.on_stop(stop.set):
        assert stop.wait(10)
        assert clock.now() == pytest.approx(0.3)
    with Budget(0.3, clock=clock) as budget:
        pass
    clock.sleep(1)  # its timer ended with it
    assert clock.now() == pytest.approx(1.3)


def test_stream_does_nothing_before_it_is_read(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER])
    events = agent.stream(frame, "q")
    assert agent.model.engine.decoder.runs == []  # type: ignore[attr-defined]
    assert isinstance(list(events)[-1], AnswerEvent)


def test_a_retry_waits_in_the_time_of_its_question(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    class Busy(FakeProvider):
        def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
            hits = super().search_text(query, k=k, deadline=deadline)
            if len(self.asked) == 1:
                raise RetryableError("429", retry_after=3.0)
            return hits

    agent = make_agent([TEXT, ANSWER], [Resilient(Busy([HERON], kinds=["text"]))])
    answer = agent.ask(frame, "q", budget=Budget(clock=clock))
    assert answer.steps[0].observations[0].hits == (HERON,)
    assert answer.seconds == pytest.approx(3.0)


READS_TIME = r"\btime\.(monotonic|sleep)\b|\bfrom time import\b.*\b(monotonic|sleep)\b|\bthreading\.Timer\b"


def test_only_the_clock_reads_the_machines_time() -> None:
    """What decides by time goes through the clock of `gog_edge.deadline` (ADR 0008); exporting and measuring have none
    to obey, and `perf_counter` measures and decides nothing."""
    package = Path(gog_edge.__file__).parent
    free = {"bench", "evaluation", "export", "cli"}
    wrong = [
        f"{path.relative_to(package)}: {found.group()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "deadline.py" and path.relative_to(package).parts[0] not in free
        for found in re.finditer(READS_TIME, path.read_text("utf-8"))
    ]
    assert wrong == []
