"""Reading ahead: crop and wording before the results are read while the search runs, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gog_edge.agent.agent import Agent, Conversation
from gog_edge.agent.options import NO_PREFETCH, Prefetch
from gog_edge.deadline import Budget
from gog_edge.dialects import load, names
from gog_edge.errors import EngineError, SearchError
from gog_edge.image.frame import Frame
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import Trace
from gog_edge.search.base import IMAGE, Deadline, ImageQuery, Page
from gog_edge.types import Action, ActionKind, Answer, Hit, ObservationEvent, StopReason
from tests.agent.test_dialects_loop import ACTIONS, SMALL
from tests.agent.test_loop import ANSWER, GAZE, HERON, TEXT
from tests.agent.virtual_clock import VirtualClock
from tests.runtime.conftest import MakeAgent
from tests.runtime.fakes import FakeProvider

WITHOUT = Prefetch(observation=False)
PLAIN = {"speculation": Speculation(max_draft=0), "prefix_cache": False}
OTHER_BOX = GAZE.replace("100, 200, 500, 700", "300, 100, 900, 800")


def ids(conversation: Conversation) -> list[int]:
    """The conversation's tokens; those that are computed were checked against what the decoder saw."""
    session = conversation.session
    tokens: list[int] = session.tokens.tolist()
    cache: Any = session._cache
    assert cache.ids[: session.computed] == tokens[: session.computed]
    return tokens


def both(
    make: Callable[[Prefetch], Agent], frame: Frame, clock: VirtualClock, **rest: Any
) -> tuple[Answer, Answer, Agent]:
    """The same question with and without reading ahead: same tokens, turns, observations and counts.

    Only runs of the tower may differ: a crop that was read ahead and is not shown after all was encoded all the same.
    """
    found = []
    for prefetch in (Prefetch(), WITHOUT):
        agent = make(prefetch)
        with agent.session(frame) as conversation:
            answer = conversation.ask("What does it eat?", budget=Budget(clock=clock), **rest)
            images = [(i.index, i.region, i.source) for i in conversation.session.images]
            found.append((answer, ids(conversation), images, agent))
    (fast, fast_ids, fast_images, agent), (slow, slow_ids, slow_images, _) = found
    assert fast_ids == slow_ids
    assert fast_images == slow_images
    assert (fast.text, fast.stop) == (slow.text, slow.stop)
    assert [s.turn for s in fast.steps] == [s.turn for s in slow.steps]
    assert [s.observations for s in fast.steps] == [s.observations for s in slow.steps]
    assert replace(fast.usage, encoded_images=0, cached_images=0) == replace(
        slow.usage, encoded_images=0, cached_images=0
    )
    return fast, slow, agent


def test_the_crop_is_read_before_its_search_is_over(make_agent: MakeAgent, frame: Frame) -> None:
    """The provider answers only when the decoder has seen every pixel of the crop."""

    class Patient(FakeProvider):
        def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
            if not read.wait(60):
                raise SearchError("nobody read the crop")
            return super().search_image(query, k=k, deadline=deadline)

    read = threading.Event()
    agent = make_agent([GAZE, ANSWER], [Patient([HERON], kinds=[IMAGE])], search_timeout=90)
    decoder: Any = agent.model.engine.decoder
    run, pad = decoder.run, agent.model.manifest.tokens.image_pad

    with agent.session(frame) as conversation:

        def watched(inputs: Any, cache: Any, *rest: Any) -> Any:
            logits = run(inputs, cache, *rest)
            spans = conversation.session.sequence.spans
            if len(spans) == 2 and cache.ids.count(pad) == sum(s.count for s in spans):
                read.set()
            return logits

        decoder.run = watched
        answer = conversation.ask("q")
        ids(conversation)
    assert answer.steps[0].observations[0].hits == (HERON,)
    assert answer.text == "fish"


def test_reading_the_crop_takes_no_time_of_its_own(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    def make(prefetch: Prefetch) -> Agent:
        provider = FakeProvider([HERON], wait_s=2.0, clock=clock)
        return make_agent([GAZE, ANSWER], [provider], step_s=0.02, row_s=0.001, prefetch=prefetch, **PLAIN)

    fast, slow, agent = both(make, frame, clock)
    crop = agent.model.vision.plan(frame, fast.steps[0].turn.actions[0].region).tokens
    assert fast.usage == slow.usage
    ahead = [rows for _, rows in agent.model.engine.decoder.runs if rows > 1][-2]  # type: ignore[attr-defined]
    assert ahead > crop
    assert slow.seconds - fast.seconds == pytest.approx(0.001 * ahead)


def test_results_that_come_at_once_are_read_in_one_run(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock
) -> None:
    """A search that needs less than a decoding step is not overtaken: a run of its own would cost more."""

    def make(prefetch: Prefetch) -> Agent:
        provider = FakeProvider([HERON], wait_s=0.01, clock=clock)
        return make_agent([TEXT, ANSWER], [provider], step_s=0.02, prefetch=prefetch, **PLAIN)

    fast, slow, _ = both(make, frame, clock)
    assert fast.seconds == pytest.approx(slow.seconds)


REPLIES: list[list[Hit] | Exception] = [
    [HERON, Hit("<b>", "…", "", None), Hit(" ", "\n", "x")],
    SearchError("no way"),
    [Hit(".\n", "\n\n", ")", 1.0)],  # goes on where a token of the wording before it might
    [],
]


class EachKindOtherwise(FakeProvider):
    """Text, whole image, region and page get reply number `shift`, `shift` + 1, …"""

    def __init__(self, shift: int, clock: VirtualClock) -> None:
        super().__init__(wait_s=1.0, clock=clock)
        self._shift = shift

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        return self._number(0)[:k]

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        return self._number(1 if query.region is None else 2)[:k]

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        hits = self._number(3)
        return Page(url, hits[0].title if hits else "", hits[0].text if hits else "")

    def _number(self, number: int) -> list[Hit]:
        reply = REPLIES[(number + self._shift) % len(REPLIES)]
        self._error = reply if isinstance(reply, Exception) else None
        self._hits = reply if isinstance(reply, list) else []
        return self._reply("", number)


SEARCHING = [n for n in names() if {"glance", "gaze", "text_search", "visit"} & {a.kind for a in load(n).spec.actions}]


@pytest.mark.parametrize(
    ("name", "shift"), [*((n, 0) for n in SEARCHING), *((n, s) for n in ("gog", "gog-mmsearch") for s in (1, 2, 3))]
)
def test_every_dialect_reads_the_same_tokens(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock, name: str, shift: int
) -> None:
    probe = make_agent([""], dialect=name, **SMALL)
    spec = probe.dialect.spec
    head = f"{spec.parse.think_open}look{spec.parse.think_close}\n" if spec.parse.think_open else ""
    with probe.session(frame) as conversation:
        conversation.session.add_image(frame, limits=probe.image_limits())
        images = conversation.session.images
        kinds = [k for k in ACTIONS if k in {a.kind for a in spec.actions}]
        calls = [head + probe.dialect.write(ACTIONS[k], images) for k in kinds]
        script = [*calls, head + probe.dialect.write(Action(ActionKind.ANSWER, "fish"), images)]

    def make(prefetch: Prefetch) -> Agent:
        provider = EachKindOtherwise(shift, clock)
        late = replace(prefetch, glance=False)  # the early one is over before it is asked for
        return make_agent(script, [provider], dialect=name, row_s=0.001, prefetch=late, **SMALL, **PLAIN)

    fast, slow, _ = both(make, frame, clock, max_turns=len(kinds) + 1)
    assert fast.text == "fish"
    assert fast.seconds < slow.seconds  # some wording stands before the results everywhere


def test_several_searches_of_a_turn(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    """Whoever is slower, the tokens are the same; results of the first are read while the others still search."""

    class Uneven(FakeProvider):
        def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
            clock.sleep(waits[0] if query.region is not None and query.region.x0 < 50 else waits[2])
            return self._hits[:k]

        def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
            clock.sleep(waits[1])
            return self._hits[:k]

    turn = "\n".join([GAZE, TEXT, OTHER_BOX, TEXT.replace("food", "young")])
    saved = {}
    for waits in ((0.5, 1.5, 1.0), (1.5, 1.0, 0.5), (0.5, 0.5, 0.5)):
        trace = Trace()

        def make(prefetch: Prefetch) -> Agent:
            return make_agent([turn, ANSWER], [Uneven([HERON])], row_s=0.001, prefetch=prefetch, **PLAIN)

        fast, slow, _ = both(make, frame, clock, trace=trace)
        assert len(fast.steps[0].observations) == 4
        saved[waits] = slow.seconds - fast.seconds
    assert saved[0.5, 1.5, 1.0] > saved[1.5, 1.0, 0.5] > 0  # more is known early when the first is there first


def test_one_search_of_two_fails(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    for error in (SearchError("no"), RuntimeError("a bug"), SystemExit(1)):

        def make(prefetch: Prefetch, error: BaseException = error) -> Agent:
            bad = FakeProvider(error=error, wait_s=1.0, clock=clock, kinds=["image"])
            good = FakeProvider([HERON], wait_s=2.0, clock=clock, kinds=["text"])
            return make_agent([GAZE + "\n" + TEXT, ANSWER], [bad, good], row_s=0.001, prefetch=prefetch, **PLAIN)

        fast, _, _ = both(make, frame, clock)
        assert fast.steps[0].observations[0].error
        assert fast.steps[0].observations[1].hits == (HERON,)


def test_a_provider_that_hangs_is_left_behind_at_the_same_time(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock
) -> None:
    def make(prefetch: Prefetch) -> Agent:
        provider = FakeProvider(wait_s=60, clock=clock)
        return make_agent([GAZE, ANSWER], [provider], row_s=0.01, search_timeout=3, prefetch=prefetch, **PLAIN)

    fast, slow, _ = both(make, frame, clock)
    assert "longer than 3 s" in fast.steps[0].observations[0].error
    assert fast.seconds < slow.seconds  # the time of reading counts as time of waiting


@pytest.mark.parametrize("deadline", [4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 14.0])
def test_a_deadline_in_the_midst_of_reading_ahead(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock, deadline: float
) -> None:
    agent = make_agent(
        [GAZE, "<answer>guess</answer>"], [FakeProvider([HERON], wait_s=4, clock=clock)], row_s=0.02, **SMALL, **PLAIN
    )
    with agent.session(frame) as conversation:
        answer = conversation.ask("q", deadline=deadline, budget=Budget(clock=clock))
        text = agent.model.tokenizer.decode(ids(conversation))
    assert answer.seconds <= deadline + 1e-6
    found = "The grey heron eats fish." in text
    assert found == bool(answer.stop is StopReason.ANSWERED)
    if not found:  # nothing of an observation that never came is left, neither wording nor crop
        assert text.count("<|vision_start|>") == 1
        assert "<tool_response>" not in text


def test_cancelling_in_the_midst_of_reading_ahead(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    provider = FakeProvider([HERON], wait_s=5, clock=clock)
    agent = make_agent([GAZE, ANSWER], [provider], row_s=0.01, **PLAIN)
    decoder: Any = agent.model.engine.decoder
    run, budget = decoder.run, Budget(clock=clock)
    with agent.session(frame) as conversation:

        def cancelled(inputs: Any, cache: Any, past: int, own: Budget) -> Any:
            if len(conversation.session.sequence.spans) == 2:  # the crop is being read
                clock.later(0.05, budget.cancel)
            return run(inputs, cache, past, own)

        decoder.run = cancelled
        answer = conversation.ask("q", budget=budget)
        assert answer.stop is StopReason.CANCELLED
        text = agent.model.tokenizer.decode(ids(conversation))
        assert text.endswith(GAZE)
        assert len(conversation.session.images) == 1
        decoder.run = run
        assert conversation.ask("q", budget=Budget(clock=clock)).text == "fish"


def test_closing_the_stream_before_the_results_are_appended(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([GAZE, ANSWER], [FakeProvider([HERON], wait_s=0.3)])
    with agent.session(frame) as conversation:
        events = conversation.stream("q")
        assert any(isinstance(e, ObservationEvent) for e in events)  # stops at the first
        events.close()  # type: ignore[attr-defined]
        text = agent.model.tokenizer.decode(ids(conversation))
        assert text.endswith(GAZE)
        assert conversation.ask("q").text == "fish"


def test_an_engine_that_fails_while_reading_ahead(make_agent: MakeAgent, frame: Frame, clock: VirtualClock) -> None:
    agent = make_agent([GAZE, ANSWER], [FakeProvider([HERON], wait_s=1, clock=clock)], **PLAIN)
    decoder: Any = agent.model.engine.decoder
    run, pad_runs = decoder.run, []

    def failing(inputs: Any, *rest: Any) -> Any:
        pad_runs.append(inputs.embeds.shape[0])
        if len(pad_runs) > 1 and inputs.embeds.shape[0] > 1:  # neither the prompt nor a decoding step
            raise EngineError("the device is gone")
        return run(inputs, *rest)

    decoder.run = failing
    with pytest.raises(EngineError, match="the device is gone"):
        agent.ask(frame, "q", budget=Budget(clock=clock))
    decoder.run = run
    assert agent.ask(frame, "q", budget=Budget(clock=clock)).text == "fish"


@pytest.mark.parametrize("spare", [0, 40, 80, 120, 160, 400])
def test_a_context_that_has_no_room(make_agent: MakeAgent, frame: Frame, clock: VirtualClock, spare: int) -> None:
    """Too small for the results, for the crop, or for the wording: the same rule, with and without reading ahead."""
    long = Hit("t", "word " * 40, "s")
    rest = {**SMALL, **PLAIN}
    with make_agent([GAZE, ANSWER], [FakeProvider()], **rest).session(frame) as probe:
        probe.ask("What does it eat?", max_turns=1)
        used = len(probe.session)

    def make(prefetch: Prefetch) -> Agent:
        provider = FakeProvider([long] * 3, wait_s=1, clock=clock)
        context = {"max_context": used + 64 + spare, "answer_reserve": 16}
        return make_agent([GAZE, ANSWER], [provider], row_s=0.001, prefetch=prefetch, **context, **rest)

    fast, _, _ = both(make, frame, clock)
    if spare in (40, 80):
        assert fast.steps[0].observations[0].shown is None  # it was read for nothing


def test_nothing_is_read_ahead_where_the_rows_of_a_run_depend_on_each_other(
    make_agent: MakeAgent, frame: Frame, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gog_edge.runtime.model.Model.rows_independent", property(lambda _: False))
    runs = []
    for prefetch in (Prefetch(), WITHOUT):
        provider = FakeProvider([HERON], wait_s=1, clock=clock)
        agent = make_agent([TEXT, ANSWER], [provider], prefetch=prefetch, **PLAIN)
        assert agent.ask(frame, "q", budget=Budget(clock=clock)).text == "fish"
        runs.append(agent.model.engine.decoder.runs)  # type: ignore[attr-defined]
    assert runs[0] == runs[1]
    assert not NO_PREFETCH.observation
