"""Several questions about the same images: the images are encoded and prefilled once.

Questions are independent of each other: each begins behind what its prompt has in common with the one before (the
system prompt and the images, where the dialect puts them first). Save keeps the KV cache, so a conversation goes on
in another process where it stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gog_edge.agent.dispatch import SearchDesk
from gog_edge.agent.loop import Question
from gog_edge.agent.tools import Actor, QuestionContext
from gog_edge.deadline import Budget
from gog_edge.dialects.safety import Neutraliser
from gog_edge.errors import EngineError, SessionError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnWriter
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import SpeculationStats
from gog_edge.runtime.telemetry import Trace
from gog_edge.search.base import IMAGE, TEXT, ImageQuery
from gog_edge.types import Answer, AnswerEvent, Event, Hit

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent
    from gog_edge.agent.options import RunOptions
    from gog_edge.dialects import Dialect

_TITLE_CHARS, _BACKGROUND_CHARS = 200, 400


class Conversation:
    """Made by `Agent.session` or `Agent.resume`. One question at a time; other threads wait their turn."""

    def __init__(self, agent: Agent, session: Session, frames: Sequence[Frame]) -> None:
        self.agent = agent
        self.frames = tuple(frames)
        self.speculation = SpeculationStats()
        self._session: Session | None = session
        self._busy = threading.Lock()

    @property
    def session(self) -> Session:
        """The tokens and KV cache underneath.

        Raises:
            UsageError: the conversation is closed.
        """
        if self._session is None:
            raise UsageError("the conversation is closed")
        return self._session

    def ask(
        self,
        question: str,
        *,
        deadline: float | None = None,
        max_turns: int | None = None,
        budget: Budget | None = None,
        trace: Trace | None = None,
    ) -> Answer:
        """Answer a question; arguments and errors as `Agent.ask`."""
        return last_answer(self.stream(question, deadline=deadline, max_turns=max_turns, budget=budget, trace=trace))

    def stream(
        self,
        question: str,
        *,
        deadline: float | None = None,
        max_turns: int | None = None,
        budget: Budget | None = None,
        trace: Trace | None = None,
        context: QuestionContext | None = None,
    ) -> Iterator[Event]:
        """Answer a question as events; closing the iterator cancels it. Arguments and errors as `Agent.stream`."""
        check_arguments(question, deadline, max_turns)
        with self._busy, Budget(deadline, parent=budget) as own:
            self.agent.started(own)
            try:
                yield from self._run(question, context or QuestionContext(question), own, max_turns, trace)
            finally:
                self.agent.ended(own)

    def save(self, path: str | Path, *, kv: bool = True, frames: bool = True) -> Path:
        """Write the conversation to a file (see `session_state.save_session`).

        Raises:
            SessionError: the disk is full or the folder can't be written; an older file stays.
        """
        with self._busy:
            extra = {"dialect": self.agent.dialect.name, "images": len(self.frames)}
            return save_session(self.session, path, kv=kv, frames=frames, extra=extra)

    @classmethod
    def load(cls, agent: Agent, path: str | Path, frames: Sequence[Frame]) -> Conversation:
        """See `Agent.resume`."""
        session, extra = load_session(path, agent.model, frames=frames)
        if extra.get("dialect") != agent.dialect.name:
            raise SessionError(
                f"{path} was made with dialect {extra.get('dialect')!r}, this agent speaks {agent.dialect.name!r}"
            )
        count = int(extra.get("images", len(session.images)))
        return cls(agent, session, [session.frame(i) for i in range(count)])

    def release(self) -> Session | None:
        """Give the session up; None if it was discarded."""
        session, self._session = self._session, None
        return session

    def discard(self) -> None:
        """The session can't be trusted any more (the engine failed)."""
        self._session = None

    def close(self) -> None:
        """Let go of the KV cache. Idempotent."""
        self._session = None

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one question ----------------------------------------------------------------------------------------

    def _run(
        self, question: str, context: QuestionContext, budget: Budget, max_turns: int | None, trace: Trace | None
    ) -> Iterator[Event]:
        agent, session = self.agent, self.session
        options, dialect = agent.options, _with_results(agent.dialect, agent.options)
        session.trace = trace = trace if trace is not None else Trace()
        trace.question = question
        trace.meta.update(
            bundle=agent.model.manifest.name, dialect=dialect.name, fingerprint=agent.model.bundle.fingerprint
        )
        desk = SearchDesk(agent.providers, options.search_timeout, budget, trace, guarded=options.guard)
        start_usage = session.usage
        limits = agent.image_limits()
        plans = [agent.model.vision.plan(frame, None, limits) for frame in self.frames]
        asked = question
        if options.early_knowledge:
            asked += _background(desk, plans[0].frame, question, context, dialect.limits.results, budget)
        geometry = [plan.registered(i, i) for i, plan in enumerate(plans)]
        opening = dialect.opening(asked, len(plans), geometry)
        session.restart(plans, opening, reserve=options.answer_reserve)
        actor = Actor(session, dialect, desk, options, context, budget, len(plans))
        guessing = options.speculation
        if guessing.max_draft and not options.may_guess(agent.model.rows_independent):
            trace.note("no tokens are guessed: with this bundle's operators that could change the text (exact)")
            guessing = replace(guessing, max_draft=0)
        writer = TurnWriter(session, Sampler(options.sampling), guessing)
        self.speculation = writer.speculation
        run = Question(
            session=session,
            dialect=dialect,
            writer=writer,
            actor=actor,
            options=options,
            budget=budget,
            max_turns=max_turns or options.max_turns or dialect.limits.turns or 8,
            start_usage=start_usage,
            grammar=agent.constraint(),
            pace=agent.pace,
        )
        try:
            yield from run.events()
        finally:
            trace.meta["speculation"] = {**asdict(self.speculation), "accept_rate": self.speculation.accept_rate}
            budget.cancel()  # what was started early and not used ends here
            actor.finish()


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


def check_arguments(question: str, deadline: float | None, max_turns: int | None) -> None:
    """Refuse what makes no sense before anything is loaded.

    Raises:
        UsageError: names the argument and the mend.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    if deadline is not None and not deadline > 0:
        raise UsageError(f"a deadline of {deadline} s leaves no time: give a positive number of seconds")
    if max_turns is not None and max_turns < 1:
        raise UsageError(f"max_turns is {max_turns}: at least one turn is needed")


def _with_results(dialect: Dialect, options: RunOptions) -> Dialect:
    """The dialect with room for as many results as the options ask for, related entries included."""
    limits = dialect.spec.limits
    wanted = options.results or limits.results
    if not wanted or not (options.results or options.expand):
        return dialect
    return replace(dialect, spec=replace(dialect.spec, limits=replace(limits, results=wanted + options.expand)))


def _background(
    desk: SearchDesk, frame: Frame, question: str, context: QuestionContext, results: int, budget: Budget
) -> str:
    """What searching with the question and the image finds before the policy starts, as outside text of the prompt
    (Early Knowledge Alignment)."""
    k = results or 3
    jobs = []
    if desk.can(IMAGE):
        url = context.urls[0] if context.urls else ""
        jobs.append(desk.image(ImageQuery(frame, None, "", url, context.key), k))
    if desk.can(TEXT):
        jobs.append(desk.text(question, k))
    hits: list[Hit] = []
    for job in jobs:
        hits += [h for h in desk.wait(job, budget).hits if h not in hits]
    if not hits:
        return ""
    clean = Neutraliser()  # outside text, as in the results of a turn
    lines = [f"- {clean.line(h.title, _TITLE_CHARS)}: {clean.line(h.text, _BACKGROUND_CHARS)}" for h in hits[: 2 * k]]
    return "\n\nPossibly related, found by searching:\n" + "\n".join(lines)
