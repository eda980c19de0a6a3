"""One question from prompt to answer: observe, decide, act; events as they happen.

Ends: the policy answers; a limit is reached and it is made to answer; time runs out (then it is made to answer while
there is time left for that, and what it wrote of the answer counts); the caller cancels. The calls of the round that
reaches the turn limit are not executed: there would be no turn to read the results.

A token climbs four generators: `TurnWriter.turn`, `AgentLoop._write`, `AgentLoop.run`, `events`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace

from gog_edge.agent.evidence import supporting
from gog_edge.agent.options import RunOptions
from gog_edge.agent.prefetch import PAUSE_S, ReadAhead
from gog_edge.agent.repeats import MOST, RepeatedFailures
from gog_edge.agent.request import AskRequest
from gog_edge.agent.shortening import shorter_and_shorter
from gog_edge.agent.tools import ToolExecutor
from gog_edge.deadline import SYSTEM, Budget, DeadlineReached, Pace
from gog_edge.dialects import Dialect
from gog_edge.dialects.answer_stream import AnswerStream, answer_of, answers
from gog_edge.errors import CancelledError, ContextOverflowError, EngineError, GrammarError, UsageError
from gog_edge.runtime.generate import Constraint, TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.sequence import Mark
from gog_edge.runtime.session import Session
from gog_edge.types import (
    ActionEvent,
    ActionKind,
    Answer,
    AnswerEvent,
    BoxEvent,
    Event,
    NoticeEvent,
    Observation,
    ObservationEvent,
    Region,
    Segment,
    Step,
    StopReason,
    TextEvent,
    TokenEvent,
    Turn,
    Usage,
)

_FORCED_GUESS = 48  # tokens of the forced-answer turn, before it was encoded once
_WORTH_S = 0.02  # with less time than this, continuing is not worth it
_CLOSES_BOX = frozenset("]>}\n")  # of any dialect


@dataclass
class AgentLoop:
    """The state of one question. `run()` runs it once; the opening is in the session already.

    `start_usage`: what the session had counted before this question. `grammar`: makes a (forced) turn's constraint.
    """

    session: Session
    dialect: Dialect
    writer: TurnWriter
    tools: ToolExecutor
    options: RunOptions
    budget: Budget
    max_turns: int
    start_usage: Usage
    grammar: Callable[[bool], Constraint | None]
    pace: Pace
    steps: list[Step] = field(default_factory=list)
    _errors: int = 0
    _step_searches: int = 0
    _forced_tokens: int = _FORCED_GUESS
    _open: Mark | None = None  # in front of an observation that is not complete yet
    _before: Mark | None = None  # in front of the newest complete one
    _read_at: int = 0  # tokens that are computed once it was read
    _boxes: set[tuple[Region, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._answer: AnswerStream
        self._repeats = RepeatedFailures(self.tools.can)
        self._total = self.budget.remaining()
        self._most = self.options.total_tokens or self.dialect.limits.total_tokens or math.inf  # tokens written in all
        self._began = self._step_began = self.budget.clock.now()
        self._step_usage = self.start_usage

    def run(self) -> Generator[Event, None, Answer]:
        """The question's events, and its answer.

        Raises:
            CancelledError, DeadlineReached: the budget ended; `answer` tells what there is.
            EngineError: the engine failed. GrammarError, UsageError: the grammar, or the schema, can't be followed.
        """
        if missing := self.tools.missing():
            self.session.trace.note(missing)
            yield NoticeEvent(missing)
        self.tools.expect_glance()
        reason: StopReason | None = None
        number = 0
        while reason is None:
            self.session.trace.step = number
            result = TurnResult()
            in_time = yield from self._write(number, result)
            turn = self._parse(result.text)
            if in_time or answers(turn):
                for action in turn.actions:
                    yield ActionEvent(number, action)
            if answers(turn):
                self._close_step(number, turn, ())
                yield from self._rest(number, turn)
                return self.answer(answer_of(turn), StopReason.ANSWERED if in_time else StopReason.DEADLINE)
            reason = self._met_limit(number, turn) if in_time else StopReason.DEADLINE
            observations: list[Observation] = []
            stopped = False
            if reason is None:
                try:
                    observations, stopped = self._repeats.told(self._act(number, turn))
                except DeadlineReached:
                    reason = StopReason.DEADLINE
            if reason is not None:
                self._close_step(number, turn, ())
            else:
                for observation in observations:
                    yield ObservationEvent(number, observation)
                reason = self._append(number, turn, observations)
                if stopped and reason is None:
                    self.session.trace.note(f"the same calls failed {MOST} times: the policy is made to answer")
                    reason = StopReason.FORCED
            number += 1
        exhausted = reason if reason is StopReason.DEADLINE else StopReason.EXHAUSTED
        self.session.trace.step = number
        if not self._ask_for_answer(reason):
            return self.answer("", exhausted)
        result = TurnResult()
        in_time = yield from self._write(number, result, forced=True)
        turn = self._parse(result.text, forced=True)
        for action in turn.actions:
            yield ActionEvent(number, action)
        self._close_step(number, turn, ())
        yield from self._rest(number, turn)
        text = answer_of(turn)
        return self.answer(text, StopReason.DEADLINE if not in_time else reason if text else exhausted)

    def answer(self, text: str, stop: StopReason) -> Answer:
        """`text` as the question's answer, with everything so far."""
        usage = replace(self.session.usage - self.start_usage, searches=self.tools.searches)
        seconds = self.budget.clock.now() - self._began
        plans = [self.session.image(i).plan for i in range(len(self.session.images))]
        pictures = tuple(plan and plan.frame for plan in plans)
        return Answer(text, stop, tuple(self.steps), supporting(text, self.steps), usage, seconds, pictures)

    def forget_open(self) -> None:
        """What was read ahead for an observation that never came is not part of the conversation."""
        if self._open is not None:
            self.session.rewind(self._open)
            self._open = None

    # -- a turn ----------------------------------------------------------------------------------------------

    def _write(self, number: int, result: TurnResult, *, forced: bool = False) -> Generator[Event, None, bool]:
        """Let the policy write a turn; whether it came to its own end. A turn that is writing its answer when only
        the answer's time is left continues to the real deadline, as a `forced` one does from the start."""
        session, eos = self.session, self.session.model.manifest.tokens.eos
        constraint = self.grammar(forced)
        as_json = self.tools.request.schema is not None
        self._answer = answer = self.dialect.answer_stream(forced, constraint is not None, as_json)
        timed = not forced and not math.isinf(self._total)
        while True:  # the speed may be an estimate at first; it improves during the turn
            with self._soft() if timed else Budget(parent=self.budget) as budget:
                options = TurnOptions(self._most_tokens(result), eos, answer.stops, budget)
                began, unread = budget.clock.now(), len(session) - session.computed
                try:
                    for token in self.writer.turn(options, constraint, result):
                        if unread and not token.forced:
                            self.pace.prefilled(unread, budget.clock.now() - began)
                            unread = 0
                        yield TokenEvent(number, token.text, token.forced)
                        if answer.sign in result.text and (piece := answer.feed(result.text)):
                            yield TextEvent(number, piece)
                        if timed and result.end is None and self._late():
                            break
                        if not _CLOSES_BOX.isdisjoint(token.text) and (box := self._box(number, result.text)):
                            yield box
                        budget.check()
                    else:
                        return True
                except DeadlineReached:
                    if not timed:
                        return False
                except GrammarError as e:  # one that can't be followed is dropped, unless it is required
                    if as_json:
                        raise UsageError(f"the answer can't follow the JSON schema: {e}") from e
                    if self.options.grammar == "on":
                        raise
                    session.trace.note(f"the grammar is left: {e}")
                    constraint = None
                finally:
                    self.pace.wrote(self.writer.seconds_per_token)
            if timed and self._late():
                session.trace.note("only the time for an answer is left")
                if not answers(self._parse(result.text)):
                    return False
                timed = False

    def _most_tokens(self, result: TurnResult) -> int:
        """Tokens that the turn may have in all, `result`'s included; what a forced answer needs is kept free."""
        limits = self.dialect.limits
        have = len(result.ids)
        most: list[float] = [have + self.session.room - self._answer_room, self._most - self._written + have]
        if turn := self.options.turn_tokens or limits.turn_tokens:
            most.append(turn)
        return max(int(min(most)), 1)

    def _box(self, number: int, text: str) -> BoxEvent | None:
        """Start early what a closed box needs."""
        found = self.dialect.partial(text, self.session.images)
        if found is None or found in self._boxes:
            return None
        self._boxes.add(found)
        self.tools.expect_crop(*found)
        return BoxEvent(number, *found)

    def _act(self, number: int, turn: Turn) -> list[Observation]:
        """Execute a turn's calls, in the time that is not reserved for the answer."""
        self._open = self.session.mark()
        ahead = None
        if self.options.prefetch.observation and self.options.may_guess(self.session.model.rows_independent):
            ahead = ReadAhead(
                self.session,
                lambda given: self._wording(number, turn, given),
                self._open.length,
                self._answer_room,
                self.writer.seconds_per_token or PAUSE_S,
            )
        with self._soft() as soft:
            return self.tools.perform(turn.actions, soft, ahead)

    def _append(self, number: int, turn: Turn, observations: Sequence[Observation]) -> StopReason | None:
        """Append what came back; a reason to stop if there is no room or no time to read it.

        Results that do not fit are shortened by a stated rule: first to the best result of each search, then to a
        line that says so. Nothing is cut silently: the step and the trace show what the policy was given.
        """
        session, before = self.session, self._open or self.session.mark()
        for given in shorter_and_shorter(observations):
            segments = self._wording(number, turn, given)
            try:
                count = session.append(segments, reserve=self._answer_room, behind=before.length)
            except ContextOverflowError as e:
                session.trace.note(f"results are shortened: {e}")
                continue
            self._before, self._open = before, None
            self._read_at = len(session)
            self._close_step(number, turn, given)
            count = min(count, len(session) - session.computed)
            if self.pace.reading(count) > self.budget.remaining() - self._reserve():
                session.trace.note(f"there is no time to read {count} tokens of results")
                session.rewind(before)
                return StopReason.DEADLINE
            return None
        self._close_step(number, turn, observations)
        return StopReason.FORCED

    def _wording(self, number: int, turn: Turn, observations: Sequence[Observation]) -> list[Segment]:
        return self.dialect.observe(
            turn,
            observations,
            question=self.tools.request.question,
            step=number + 1,
            images=self.session.images,
            last=number + 2 >= self.max_turns,
        )

    def _ask_for_answer(self, reason: StopReason) -> bool:
        """Write the turn that asks for an answer now; whether there is such a turn, and room and tokens for it."""
        session, forced = self.session, self.dialect.spec.forced
        self.forget_open()
        if not (forced.user or forced.prefill) or self._written >= self._most:
            return False
        if reason is StopReason.DEADLINE and self._before is not None and session.computed < self._read_at:
            session.rewind(self._before)  # results that there was no time to read
        try:
            self._forced_tokens = session.append(self.dialect.forced_answer(self.tools.request.question))
        except ContextOverflowError as e:
            session.trace.note(f"no room for a forced answer: {e}")
            return False
        return True

    # -- limits and time -------------------------------------------------------------------------------------

    def _met_limit(self, number: int, turn: Turn) -> StopReason | None:
        """Why the policy is made to answer instead of continuing, or None."""
        limits = self.dialect.limits
        invalid = all(action.kind is ActionKind.INVALID for action in turn.actions)
        self._errors = self._errors + 1 if invalid else 0
        note = ""
        if number + 1 >= self.max_turns:
            note = f"the limit of {self.max_turns} turns is reached"
        elif limits.errors_in_row and self._errors >= limits.errors_in_row:
            note = f"{self._errors} turns in a row could not be read"
        elif self._written >= self._most:
            note = f"the limit of {self._most} tokens is reached"
        elif self.session.room <= self._answer_room:
            note = "the context is full"
        if note:
            self.session.trace.note(note)
        return StopReason.FORCED if note else None

    def _soft(self) -> Budget:
        """The time that is left, less what a forced answer needs."""
        left = self.budget.remaining()
        return Budget(None if math.isinf(left) else left - self._reserve(), parent=self.budget)

    def _late(self) -> bool:
        """Only the time of a forced answer is left."""
        self.pace.wrote(self.writer.seconds_per_token)
        return self.budget.remaining() - self._reserve() < _WORTH_S

    def _reserve(self) -> float:
        return self.pace.reserve(self._forced_tokens, self._total)

    @property
    def _answer_room(self) -> int:
        """Tokens of the context that are kept for a forced answer."""
        return self.options.answer_reserve + self._forced_tokens

    @property
    def _written(self) -> int:
        return self.session.usage.generated_tokens - self.start_usage.generated_tokens

    # -- results ---------------------------------------------------------------------------------------------

    def _parse(self, text: str, *, forced: bool = False) -> Turn:
        images, own = self.session.images, self.tools.user_images
        with self.session.trace.span("parse"):
            return self._answer.settle(self.dialect.parse(text, images, forced=forced, user_images=own), text)

    def _rest(self, number: int, turn: Turn) -> Iterator[TextEvent]:
        """What of the answer was not sure while it was written."""
        if piece := self._answer.rest(answer_of(turn)):
            yield TextEvent(number, piece)

    def _close_step(self, number: int, turn: Turn, observations: Sequence[Observation]) -> None:
        now, usage, searches = self.budget.clock.now(), self.session.usage, self.tools.searches
        spent = replace(usage - self._step_usage, searches=searches - self._step_searches)
        step = Step(number, turn, tuple(observations), spent, now - self._step_began)
        self.steps.append(step)
        self.session.trace.steps.append(step)
        self._step_began, self._step_usage, self._step_searches = now, usage, searches


def events(opening: AbstractContextManager[AgentLoop], request: AskRequest) -> Iterator[Event]:
    """Open a question, run it, close it; the last event is the `AnswerEvent`. Closing the iterator cancels it.

    Raises:
        EngineError: the engine failed. GrammarError: the grammar and the tokens disagree.
    """
    began = (clock := request.budget.clock if request.budget is not None else SYSTEM).now()
    with ExitStack() as stack:
        try:
            loop = stack.enter_context(opening)
        except (CancelledError, DeadlineReached) as e:  # while its images were decoded, or its early searches ran
            stop = StopReason.CANCELLED if isinstance(e, CancelledError) else StopReason.DEADLINE
            answer = Answer("", stop, seconds=clock.now() - began)
            if request.trace is not None:
                request.trace.answer = answer
            yield AnswerEvent(answer)
            return
        try:
            answer = yield from loop.run()
        except CancelledError:
            answer = loop.answer("", StopReason.CANCELLED)
        except DeadlineReached:
            answer = loop.answer("", StopReason.DEADLINE)
        finally:
            loop.forget_open()
        loop.session.trace.answer = answer
        yield AnswerEvent(answer)


def last_answer(events: Iterator[Event]) -> Answer:
    """Run a question to its end.

    Raises:
        EngineError: it ended without an answer event. And whatever the question raises.
    """
    answer: Answer | None = None
    for event in events:
        if isinstance(event, AnswerEvent):
            answer = event.answer
    if answer is None:
        raise EngineError("the question ended without an answer event")
    return answer
