"""The agent: a loaded policy, its dialect and its search providers; asks any number of questions.

Thread safety: one `Agent` may be used by many threads. Every running question has a session of its own, so
questions run side by side; with native operators they share the decoder's runs (`most_together`), with others only the
processor. A `Conversation` runs one question at a time; a second thread waits for the first.

Cancelling: give a `Budget` and call its `cancel` from any thread (or close the stream). `ask` then returns an
`Answer` whose `stop` is `StopReason.CANCELLED`, with the steps so far; it does not raise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType

from gog_edge.agent.asynchronous import answer_async, events_async
from gog_edge.agent.conveniences import Conveniences
from gog_edge.agent.dispatch import SearchDispatcher
from gog_edge.agent.frames import open_frames
from gog_edge.agent.grammar import TurnGrammar
from gog_edge.agent.idle import IdleSessions
from gog_edge.agent.loop import AgentLoop, events, last_answer
from gog_edge.agent.options import RunOptions
from gog_edge.agent.picture_limits import image_limits
from gog_edge.agent.request import AskRequest, Images, spelled_out, without_image
from gog_edge.agent.tools import ToolExecutor
from gog_edge.deadline import Budget, Pace, seconds_of
from gog_edge.dialects import Dialect
from gog_edge.errors import EngineError, SessionError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Manifest
from gog_edge.runtime.model import Model
from gog_edge.runtime.remote.start import new_session, new_writer
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import SpeculationStats
from gog_edge.runtime.telemetry import NO_TRACE, Trace
from gog_edge.sampling_options import Sampling
from gog_edge.search.base import SearchProvider
from gog_edge.types import Answer, Event, PixelLimits

log = logging.getLogger("gog_edge.agent")


class Agent(Conveniences):
    """Created by `gog_edge.load`; a context manager that releases everything it opened."""

    def __init__(
        self,
        model: Model,
        dialect: Dialect,
        providers: Sequence[SearchProvider] = (),
        options: RunOptions | None = None,
        *,
        owned: Sequence[SearchProvider] = (),
    ) -> None:
        """Args:
        owned: providers that `close` closes (the others belong to the caller).

        Raises:
            GrammarError: the options require a grammar that is not available.
        """
        self.model = model
        self.dialect = dialect
        self.providers = tuple(providers)
        self.options = options or RunOptions()
        self.sampling = chosen_sampling(self.options.sampling, dialect, model.manifest)
        self.pace = Pace()  # of this machine: what one question measures serves the next one's deadline
        self._owned = tuple(owned)
        self._idle = IdleSessions(self.options.keep_sessions)
        self._lock = threading.Lock()
        self._running: set[Budget] = set()
        self._closed = False
        self._warned: set[str] = set()
        self.grammar = TurnGrammar(model, dialect, self.options.grammar)

    # -- asking ----------------------------------------------------------------------------------------------

    @spelled_out(AskRequest)
    def ask(self, request: AskRequest) -> Answer:
        """Answer one question about one or more images; for the arguments see `AskRequest`.

        The KV cache of the last question is kept: another one about the same image costs only its own words.

        Raises:
            ImageError: an image can't be read. ContextOverflowError: the question does not fit into the context.
            EngineError: the engine failed. UsageError: an argument makes no sense, or the agent is closed.
        """
        return last_answer(self.events(request))

    @spelled_out(AskRequest)
    def stream(self, request: AskRequest) -> Iterator[Event]:
        """Like `ask`, as events; the last one is the `AnswerEvent`. Closing the iterator cancels the question.

        Nothing runs before the first event is asked for, and the time of the deadline counts from there.
        """
        return self.events(request)

    def events(self, request: AskRequest) -> Iterator[Event]:
        """`stream`, for a request that is made already."""
        if not self.dialect.follows_up:
            request = request.alone()
        return events(self._asking(request), request)

    @contextmanager
    def _asking(self, request: AskRequest) -> Iterator[AgentLoop]:
        with Budget(request.deadline, parent=request.budget) as budget:
            conversation = self._borrow(request, budget)
            try:
                with conversation.asking(replace(request, deadline=None, budget=budget)) as loop:
                    yield loop
            except EngineError:
                conversation.close()  # its session can't be trusted any more
                raise
            finally:
                self._give_back(conversation)

    def session(self, image: Images, *, bgr: bool | None = None) -> Conversation:
        """Several questions about the same image or images, one after the other; can be saved and resumed. `bgr` as in
        `Frame.open`."""
        self._check_open()
        return Conversation(self, new_session(self.model), open_frames(image, self.options.pictures, bgr=bgr))

    def resume(self, path: str | Path, image: Images | None = None) -> Conversation:
        """A conversation that was saved, in this or another process.

        Args:
            image: the original images, for one that was saved without them.

        Raises:
            SessionError: missing, damaged, or made with another bundle.
        """
        self._check_open()
        return Conversation.load(self, path, open_frames(image, self.options.pictures) if image is not None else [])

    # -- life ------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Cancel every running question, from any thread."""
        with self._lock:
            running = list(self._running)
        for budget in running:
            budget.cancel()

    def close(self) -> None:
        """Cancel what runs, close owned providers and the engine. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._idle.close()
        self.cancel()
        for provider in self._owned:
            provider.close()
        self.model.engine.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for conversations -----------------------------------------------------------------------------------

    def image_limits(self) -> PixelLimits:
        """How large whole images are shown: the options', else the dialect's, else the checkpoint's."""
        return image_limits(self.dialect.limits, self.options)

    def warn(self, text: str) -> None:
        """Log what a user should know, once for each agent; an empty text says nothing."""
        with self._lock:
            new = bool(text) and text not in self._warned
            self._warned.add(text)
        if new:
            log.warning("%s", text)

    def started(self, budget: Budget) -> None:
        """A question began."""
        self._check_open()
        with self._lock:
            self._running.add(budget)

    def ended(self, budget: Budget) -> None:
        """A question ended."""
        with self._lock:
            self._running.discard(budget)

    def _borrow(self, request: AskRequest, budget: Budget) -> Conversation:
        """A conversation on an idle session (its KV may serve), or on a new one."""
        self._check_open()
        with (request.trace or NO_TRACE).span("decode_image"):
            frames = open_frames(request.image, self.options.pictures, budget, bgr=request.bgr)
        session = self._idle.take([f.digest for f in frames])
        return Conversation(self, session or new_session(self.model), frames)

    def _give_back(self, conversation: Conversation) -> None:
        session = conversation.release()
        if session is not None:
            self._idle.put(session)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the agent is closed: load the bundle again")


class Conversation:
    """Several questions about the same images, which are encoded and prefilled once. Created by `Agent.session`
    or `Agent.resume`. One question at a time; other threads wait their turn.

    Questions are independent of each other, unless they are told what came before (`earlier`): each begins after what
    its prompt has in common with the one before (the system prompt and the images, where the dialect puts them first).
    `save` keeps the KV cache, so a conversation continues in another process where it stopped.
    """

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

    @spelled_out(without_image(AskRequest))
    def ask(self, request: AskRequest) -> Answer:
        """Answer a question; arguments and errors as `Agent.ask`."""
        return last_answer(self.events(request))

    @spelled_out(without_image(AskRequest))
    def stream(self, request: AskRequest) -> Iterator[Event]:
        """Answer a question as events; closing the iterator cancels it. Arguments and errors as `Agent.stream`."""
        return self.events(request)

    @spelled_out(without_image(AskRequest))
    async def aask(self, request: AskRequest) -> Answer:
        """`ask` for asyncio; see `Agent.aask`."""
        return await answer_async(self.events, request)

    @spelled_out(without_image(AskRequest))
    def astream(self, request: AskRequest) -> AsyncIterator[Event]:
        """`stream` for asyncio; see `Agent.astream`."""
        return events_async(self.events, request)

    def events(self, request: AskRequest) -> Iterator[Event]:
        """`stream`, for a request that is made already; its image is not looked at."""
        if not self.agent.dialect.follows_up:
            request = request.alone()
        return events(self.asking(request), request)

    @contextmanager
    def asking(self, request: AskRequest) -> Iterator[AgentLoop]:
        """A question that is ready to run, with its prompt in the session.

        Raises:
            ContextOverflowError: the question does not fit into the context. UsageError: the conversation is closed.
        """
        with self._busy, Budget(request.deadline, parent=request.budget) as budget:
            self.agent.started(budget)
            try:
                loop = self._prepare(request, budget)
                self.agent.warn(loop.tools.missing())
                try:
                    yield loop
                finally:
                    stats = self.speculation
                    loop.session.trace.meta["speculation"] = {**asdict(stats), "accept_rate": stats.accept_rate}
                    if scores := loop.writer.scores:
                        mean = sum(scores) / len(scores)
                        loop.session.trace.meta["confidence"] = {"mean": mean, "least": min(scores)}
                    budget.cancel()  # what was started early and not used ends here
                    loop.tools.finish()
                    loop.writer.close()
            finally:
                self.agent.ended(budget)

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
        """Give the session up; None if the conversation is closed."""
        session, self._session = self._session, None
        return session

    def close(self) -> None:
        """Release the KV cache. Idempotent."""
        self._session = None

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, request: AskRequest, budget: Budget) -> AgentLoop:
        agent, session, options = self.agent, self.session, self.agent.options
        dialect = _with_results(agent.dialect, options)
        if request.schema is not None:
            agent.grammar.check(request.schema)
        session.trace = trace = request.trace if request.trace is not None else Trace()
        trace.question = request.question
        trace.meta.update(
            bundle=agent.model.manifest.name, dialect=dialect.name, fingerprint=agent.model.bundle.fingerprint
        )
        timeout = seconds_of(options.search_timeout)
        dispatcher = SearchDispatcher(agent.providers, timeout, budget, trace, options.pictures)
        start_usage = session.usage
        limits = agent.image_limits()
        plans = [agent.model.vision.plan(frame, None, limits) for frame in self.frames]
        asked = request.question
        if options.early_knowledge:
            asked += dispatcher.background(plans[0].frame, request, dialect.limits.results or 3)
        geometry = [plan.registered(i, i) for i, plan in enumerate(plans)]
        with_earlier = sum(past.images for past in request.earlier)
        if with_earlier > len(plans):
            raise UsageError(f"earlier questions are said to have {with_earlier} images, of {len(plans)}")
        words = dialect.opening(asked, len(plans), geometry, earlier=request.earlier, system=request.system)
        session.restart(plans, words, reserve=options.answer_reserve)
        guessing = options.speculation
        if guessing.max_draft and not options.may_guess(agent.model.rows_independent):
            if session.keeps_tokens:
                trace.note("no tokens are guessed: with this bundle's operators that could change the text (exact)")
            guessing = replace(guessing, max_draft=0)
        if request.max_tokens is not None:
            total = options.total_tokens or dialect.limits.total_tokens or request.max_tokens
            options = replace(options, total_tokens=min(total, request.max_tokens))
        sampling = agent.sampling if request.sampling is None else request.sampling.over(agent.sampling)
        writer = new_writer(session, sampling, guessing)
        writer.measures = options.confidence and session.keeps_tokens
        self.speculation = writer.speculation
        return AgentLoop(
            session=session,
            dialect=dialect,
            writer=writer,
            tools=ToolExecutor(session, dialect, dispatcher, options, request, budget, len(plans)),
            options=options,
            budget=budget,
            max_turns=request.max_turns or options.max_turns or dialect.limits.turns or 8,
            start_usage=start_usage,
            grammar=partial(agent.grammar.constraint, schema=request.schema),
            pace=agent.pace,
        )


def chosen_sampling(said: Sampling, dialect: Dialect, manifest: Manifest) -> Sampling:
    """How tokens are chosen: what the user said, then the dialect, then the checkpoint.

    Raises:
        UsageError: the bundle's own values make no sense.
    """
    return said.over(dialect.sampling, Sampling.of_checkpoint(manifest.generation))


def _with_results(dialect: Dialect, options: RunOptions) -> Dialect:
    """The dialect with room for as many results as the options ask for, related entries included."""
    limits = dialect.spec.limits
    wanted = options.results or limits.results
    if not wanted or not (options.results or options.expand):
        return dialect
    return replace(dialect, spec=replace(dialect.spec, limits=replace(limits, results=wanted + options.expand)))
