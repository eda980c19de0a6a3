"""Ways of asking that are built on `Agent.events`: many questions, a camera, from asyncio; and warming up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from gog_edge.agent.asynchronous import answer_async, events_async
from gog_edge.agent.camera.source import Source, WatchSource
from gog_edge.agent.camera.watch import Watch
from gog_edge.agent.idle import IdleSessions
from gog_edge.agent.loop import last_answer
from gog_edge.agent.options import RunOptions
from gog_edge.agent.request import AskRequest, spelled_out
from gog_edge.deadline import Budget, Duration, Pace
from gog_edge.dialects import Dialect
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnResult
from gog_edge.runtime.model import Model
from gog_edge.runtime.remote.start import new_session, new_writer
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Answer, Event, PixelLimits

_WARM_TOKENS = 8


class Conveniences(ABC):
    """What `Agent` inherits."""

    model: Model
    dialect: Dialect
    sampling: Sampling
    options: RunOptions
    pace: Pace
    _idle: IdleSessions

    @abstractmethod
    def events(self, request: AskRequest) -> Iterator[Event]:
        """The events of a question; the last one is the `AnswerEvent`."""

    @abstractmethod
    def image_limits(self) -> PixelLimits:
        """How large whole images are shown."""

    @spelled_out(AskRequest)
    async def aask(self, request: AskRequest) -> Answer:
        """`ask` for asyncio: the event loop runs on meanwhile. Cancelling the task cancels the question, and waits
        until it has ended. Arguments and errors as `ask`."""
        return await answer_async(self.events, request)

    @spelled_out(AskRequest)
    def astream(self, request: AskRequest) -> AsyncIterator[Event]:
        """`stream` for asyncio. Cancelling the task, or closing the iterator (`aclose`), cancels the question."""
        return events_async(self.events, request)

    @property
    def most_together(self) -> int:
        """How many questions may share the decoder's runs: 8 with native operators, 1 where each computes alone."""
        return self.model.decoder.most_together

    def ask_many(self, requests: Iterable[AskRequest], *, at_once: int | None = None) -> Iterator[Answer]:
        """Answer many questions, in their order. Requests are fetched when their turn comes, so that neither they nor
        the answers pile up. Questions about the same image are best put side by side: it is then read once.

        Args:
            at_once: questions that run side by side; default: `most_together`, and those about the image of the one
                before (the same object, or an equal path) after it. With native operators they share the decoder's
                runs; otherwise only the processor, which pays where searches make the policy wait.

        Raises:
            UsageError: `at_once` is below 1, or something is no request. And what `ask` raises, or who makes the
                requests, after the answers to those before it; what comes after it is not answered.
        """
        if at_once is not None and at_once < 1:
            raise UsageError(f"at_once is {at_once}: at least one question has to run")
        count = at_once or self.most_together
        return self._one_by_one(requests) if count == 1 else self._side_by_side(requests, count, at_once is None)

    def _one_by_one(self, requests: Iterable[AskRequest]) -> Iterator[Answer]:
        for request in _checked(requests):
            yield self._answer(request)

    def _side_by_side(self, requests: Iterable[AskRequest], at_once: int, in_lanes: bool) -> Iterator[Answer]:
        running: deque[tuple[Future[Answer], Budget]] = deque()
        before: tuple[AskRequest, Future[Answer]] | None = None
        fault: Exception | None = None  # of who makes the requests; those before it are answered first
        fetched = _checked(requests)

        def answer(request: AskRequest, after: Future[Answer] | None) -> Answer:
            if after is not None:
                after.exception()
            return self._answer(request)

        with ThreadPoolExecutor(at_once, "gog-many") as pool, self._idle.side_by_side(at_once):
            try:
                while True:
                    try:
                        request = next(fetched)
                    except StopIteration:
                        break
                    except Exception as e:  # noqa: BLE001 - raised in its turn
                        fault = e
                        break
                    budget = Budget(parent=request.budget)
                    after = before[1] if in_lanes and before is not None and _alike(before[0], request) else None
                    future = pool.submit(answer, replace(request, budget=budget), after)
                    running.append((future, budget))
                    before = (request, future)
                    if len(running) == at_once:
                        yield running.popleft()[0].result()
                while running:
                    yield running.popleft()[0].result()
                if fault is not None:
                    raise fault
            finally:
                for _, budget in running:  # nobody wants these any more
                    budget.cancel()

    def _answer(self, request: AskRequest) -> Answer:
        return last_answer(self.events(request))

    def watch(
        self,
        source: WatchSource,
        question: str | None = None,
        *,
        deadline: Duration | None = None,
        every: bool = False,
        bgr: bool | None = None,
        patience: Duration | None = None,
        max_turns: int | None = None,
    ) -> Watch:
        """Ask about the newest frame of a camera, stream or video, again and again; use it as a context manager.

        Frames that come while a question runs are dropped. A camera or stream that breaks is opened again, with growing
        pauses (`frame_reader`); what happens to it is logged by `gog_edge.camera`.

        Args:
            source: a camera's number, a V4L2 device ("/dev/video0"), an address (rtsp, http), a GStreamer pipeline that
                ends in appsink, a video file (which plays at its own speed), or an iterable of whatever `Frame.open`
                takes. All but the last need `pip install 'gog-edge[camera]'`.
            question: default: the dialect's usual one.
            deadline: from the moment when a frame was taken to its answer.
            every: ask about every frame; the source waits meanwhile (for files and iterables: a camera's frames would
                wait in its driver and grow old).
            bgr: order of colours of an iterable's arrays (see `Frame.open`).
            patience: raise a CameraError if no frame comes for so long; default: wait.
            max_turns: as `ask`.

        Raises:
            UsageError: this can't be watched, or there is no question. CameraError: there is no such file. The
            iterator raises CameraError if the source can't be opened at first, and what `ask` raises.
        """
        asked = question or self.dialect.usual_question
        if not asked:
            raise UsageError("a question is needed: this dialect has no usual one")

        def ask(frame: Frame, left: float | None, budget: Budget) -> Answer:
            request = AskRequest(frame, asked, deadline=left, max_turns=max_turns, budget=budget)
            return self._answer(request)

        return Watch(Source(source, bgr, self.options.pictures), ask, deadline=deadline, every=every, patience=patience)

    def warm_up(self, size: tuple[int, int] = (640, 480)) -> float:
        """Read a grey picture and write a few tokens, so that the first question finds everything loaded and the speed
        of this machine known; nothing is searched. Seconds that it took.

        Args:
            size: width and height of the pictures that will come, in pixels.

        Raises:
            EngineError: the engine failed. ImageError: the size is no size. ContextOverflowError: it is too large.
        """
        width, height = size
        frame = Frame.open(np.full((height, width), 127, np.uint8), name="warm-up picture")
        session = new_session(self.model)
        plan = self.model.vision.plan(frame, None, self.image_limits())
        words = self.dialect.opening(self.dialect.usual_question or "What is this?", 1, [plan.registered(0, 0)])
        with Budget() as budget:
            began = budget.clock.now()
            session.restart([plan], words, reserve=_WARM_TOKENS)
            session.encode_images(budget)
            read, unread = budget.clock.now(), len(session) - session.computed
            writer = new_writer(session, self.sampling, Speculation(max_draft=0))
            options = TurnOptions(_WARM_TOKENS, self.model.manifest.tokens.eos, (), budget)
            for number, _ in enumerate(writer.turn(options, None, TurnResult())):
                if number == 0:
                    self.pace.prefilled(unread, budget.clock.now() - read)
            self.pace.wrote(writer.seconds_per_token)
            return budget.clock.now() - began


def _checked(requests: Iterable[AskRequest]) -> Iterator[AskRequest]:
    for request in requests:
        if not isinstance(request, AskRequest):
            raise UsageError(f"ask_many takes AskRequest(image, question), not {type(request).__name__}")
        yield request


def _alike(one: AskRequest, other: AskRequest) -> bool:
    """Whether both are known to be about the same image without a look at it."""
    if isinstance(one.image, (str, Path)) and isinstance(other.image, (str, Path)):
        return str(one.image) == str(other.image)
    return one.image is not None and one.image is other.image
