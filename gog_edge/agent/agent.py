"""The agent: a loaded policy, its dialect and its search providers; asks any number of questions.

Thread safety: one `Agent` may be used by many threads. Every running question has a session of its own, so
questions run side by side (they share the processor; one at a time is the fastest way through a queue). A
`Conversation` runs one question at a time; a second thread waits for the first.

Cancelling: give a `Budget` and call its `cancel` from any thread (or close the stream). `ask` then returns an
`Answer` whose `stop` is `StopReason.CANCELLED`, with the steps so far; it does not raise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gog_edge.agent.conversation import Conversation, check_arguments, last_answer
from gog_edge.agent.dispatch import run_in_thread
from gog_edge.agent.options import RunOptions
from gog_edge.agent.pace import Pace
from gog_edge.agent.picture_limits import image_limits
from gog_edge.agent.tools import QuestionContext
from gog_edge.deadline import Budget
from gog_edge.dialects import Dialect
from gog_edge.errors import EngineError, GrammarError, UsageError
from gog_edge.image.frame import Frame, ImageSource
from gog_edge.manifest import Manifest
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.telemetry import Trace
from gog_edge.sampling_options import Sampling
from gog_edge.search.base import SearchProvider
from gog_edge.types import Answer, Event, PixelLimits

if TYPE_CHECKING:
    from gog_edge.runtime.constraint import TokenGrammar
    from gog_edge.runtime.generate import Constraint

log = logging.getLogger("gog_edge.agent")

Images = ImageSource | Sequence[ImageSource]


class Agent:
    """Made by `gog_edge.load`; a context manager that lets go of everything it opened."""

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
            GrammarError: the options insist on a grammar that can't be had.
        """
        self.model = model
        self.dialect = dialect
        self.providers = tuple(providers)
        self.options = options or RunOptions()
        self.sampling = chosen_sampling(self.options.sampling, dialect, model.manifest)
        self.pace = Pace()  # of this machine: what one question measures serves the next one's deadline
        self._owned = tuple(owned)
        self._idle: list[Session] = []
        self._lock = threading.Lock()
        self._running: set[Budget] = set()
        self._closed = False
        self._lark = self._choose_grammar()
        self._compiled: Future[TokenGrammar] | None = None
        if self._lark is not None:
            self._compiled = run_in_thread(self._compile, "grammar", daemon=False)

    # -- asking ----------------------------------------------------------------------------------------------

    def ask(
        self,
        image: Images,
        question: str,
        *,
        deadline: float | None = None,
        max_turns: int | None = None,
        budget: Budget | None = None,
        trace: Trace | None = None,
        urls: Sequence[str] = (),
        key: str = "",
    ) -> Answer:
        """Answer one question about one or more images.

        The KV cache of the last question is kept: another one about the same image pays for its own words only.

        Args:
            image: whatever `Frame.open` takes, or a sequence of such.
            deadline: seconds; then the best answer so far comes back, with `stop` DEADLINE.
            max_turns: rounds before the policy is made to answer (default: the options', then the dialect's).
            budget: to cancel from another thread; its own time limit holds, too.
            trace: records what happens.
            urls: public addresses of the images, for web providers that only take addresses.
            key: the data set's id of the question, for providers that replay recorded searches.

        Raises:
            ImageError: an image can't be read. ContextOverflowError: the question does not fit into the context.
            EngineError: the engine failed. UsageError: the question is empty, or the agent is closed.
        """
        events = self.stream(
            image,
            question,
            deadline=deadline,
            max_turns=max_turns,
            budget=budget,
            trace=trace,
            urls=urls,
            key=key,
        )
        return last_answer(events)

    def stream(
        self,
        image: Images,
        question: str,
        *,
        deadline: float | None = None,
        max_turns: int | None = None,
        budget: Budget | None = None,
        trace: Trace | None = None,
        urls: Sequence[str] = (),
        key: str = "",
    ) -> Iterator[Event]:
        """Like `ask`, as events; the last one is the `AnswerEvent`. Closing the iterator cancels the question.

        Nothing runs before the first event is asked for, and the time of the deadline counts from there.
        """
        check_arguments(question, deadline, max_turns)
        with Budget(deadline, parent=budget) as own:
            conversation = self._borrow(image, trace)
            try:
                yield from conversation.stream(
                    question,
                    max_turns=max_turns,
                    budget=own,
                    trace=trace,
                    context=QuestionContext(question, tuple(urls), key),
                )
            except EngineError:
                conversation.discard()
                raise
            finally:
                self._give_back(conversation)

    def session(self, image: Images) -> Conversation:
        """Several questions about the same image or images, one after the other; can be saved and resumed."""
        self._check_open()
        return Conversation(self, Session(self.model), _frames(image))

    def resume(self, path: str | Path, image: Images | None = None) -> Conversation:
        """A conversation that was saved, in this or another process.

        Args:
            image: the original images, for one that was saved without them.

        Raises:
            SessionError: missing, damaged, or made with another bundle.
        """
        self._check_open()
        return Conversation.load(self, path, _frames(image) if image is not None else [])

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
            self._idle.clear()
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

    def constraint(self) -> Callable[[], Constraint | None] | None:
        """Makes the constraint of a turn; None where turns are not constrained.

        Raises (when called):
            GrammarError: the options insist on the grammar, and it can't be compiled for this tokenizer.
        """
        lark, compiled = self._lark, self._compiled
        if lark is None or compiled is None:
            return None

        def make() -> Constraint | None:
            try:
                constraint: Constraint = compiled.result().constraint(lark)
            except GrammarError as e:
                if self.options.grammar == "on":
                    raise
                log.warning("turns are not constrained: %s", e)
                return None
            return constraint

        return make

    def image_limits(self) -> PixelLimits:
        """How large whole images are shown: the options', else the dialect's, else the checkpoint's."""
        return image_limits(self.dialect.limits, self.options)

    def started(self, budget: Budget) -> None:
        """A question began."""
        self._check_open()
        with self._lock:
            self._running.add(budget)

    def ended(self, budget: Budget) -> None:
        """A question ended."""
        with self._lock:
            self._running.discard(budget)

    def _borrow(self, image: Images, trace: Trace | None) -> Conversation:
        """A conversation on an idle session (its KV may serve), or on a new one."""
        self._check_open()
        if trace is not None:
            with trace.span("decode_image"):
                frames = _frames(image)
        else:
            frames = _frames(image)
        digests = [f.digest for f in frames]
        with self._lock:
            same = [s for s in self._idle if s.digests[: len(digests)] == digests] or self._idle
            session = same[-1] if same else None
            if session is not None:
                self._idle.remove(session)
        return Conversation(self, session or Session(self.model), frames)

    def _give_back(self, conversation: Conversation) -> None:
        session = conversation.release()
        with self._lock:
            if session is not None and not self._closed and len(self._idle) < self.options.keep_sessions:
                self._idle.append(session)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the agent is closed: load the bundle again")

    # -- grammar ---------------------------------------------------------------------------------------------

    def _choose_grammar(self) -> str | None:
        from gog_edge.runtime.constraint import available

        wanted = self.options.grammar
        if wanted == "off":
            return None
        lark = self.dialect.grammar()
        if wanted == "on":
            if lark is None:
                raise GrammarError(f"dialect {self.dialect.name!r} offers no grammar; run with the grammar off")
            if not available():
                raise GrammarError("the grammar needs llguidance: pip install 'gog-edge[grammar]', or run without it")
        return lark if available() else None

    def _compile(self) -> TokenGrammar:
        from gog_edge.runtime.constraint import TokenGrammar

        manifest = self.model.manifest
        return TokenGrammar(self.model.tokenizer.backend, manifest.tokens.eos, manifest.decoder.vocab)


def chosen_sampling(said: Sampling, dialect: Dialect, manifest: Manifest) -> Sampling:
    """How tokens are chosen: what the user said, then the dialect, then the checkpoint.

    Raises:
        UsageError: the bundle's own values make no sense.
    """
    return said.over(dialect.sampling, Sampling.of_checkpoint(manifest.generation))


def _frames(image: Images) -> list[Frame]:
    if isinstance(image, (list, tuple)):
        if not image:
            raise UsageError("no image was given: a question needs at least one")
        return [Frame.open(source) for source in image]
    return [Frame.open(image)]  # type: ignore[arg-type]  # a sequence of images was handled above
