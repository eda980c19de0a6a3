"""`at_once` questions at a time, in threads of their own; `waiting` more stand in a queue that their clients can
leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from gog_edge.agent.request import AskRequest
from gog_edge.deadline import SYSTEM, Budget
from gog_edge.errors import EngineError, GogEdgeError
from gog_edge.serve.metrics import Metrics
from gog_edge.serve.refusal import ASKERS_FAULT, Refused
from gog_edge.types import Answer, AnswerEvent, Event, StopReason, Usage

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent

log = logging.getLogger(__name__)


class Job:
    """A question in the queue or running; its events are read on the event loop that made it."""

    def __init__(self, request: AskRequest) -> None:
        self.budget = Budget()
        self.request = replace(request, budget=self.budget)
        self.started = False
        self.outcome = "waiting"  # then "running", then how it ended: a `StopReason`, "refused" or "failed"
        self.usage: Usage | None = None
        self.submitted = SYSTEM.now()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def put(self, event: Event | Exception | None) -> None:
        """From any thread; None is the end."""
        if isinstance(event, AnswerEvent):
            self.outcome, self.usage = event.answer.stop.value, event.answer.usage
        elif isinstance(event, Exception):
            self.outcome = "refused" if isinstance(event, ASKERS_FAULT) else "failed"
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event | None:
        """The next event, or None at the end.

        Raises:
            Exception: what ended the question.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def answer(self) -> Answer:
        """The last event's.

        Raises:
            EngineError: there was none. Exception: what ended the question.
        """
        found: Answer | None = None
        while (event := await self.next()) is not None:
            if isinstance(event, AnswerEvent):
                found = event.answer
        if found is None:
            raise EngineError("the question ended without an answer event")
        return found


class Worker:
    """Runs jobs in order. Threads are daemons: one that hangs in a kernel can't keep the process from ending."""

    def __init__(self, agent: Agent, waiting: int, metrics: Metrics, at_once: int = 1) -> None:
        self.agent, self.waiting, self.metrics, self.at_once = agent, waiting, metrics, at_once
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pending: set[Job] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def check_room(self) -> None:
        """Whether one more could wait.

        Raises:
            Refused: the queue is full.
        """
        if len(self._pending) >= self.waiting + self.at_once:
            raise Refused(429, "too many questions are waiting: try again", {"Retry-After": "1"})

    @property
    def load(self) -> tuple[int, int]:
        """How many questions run, and how many wait."""
        with self._lock:
            running = sum(job.started for job in self._pending)
            return running, len(self._pending) - running

    def submit(self, request: AskRequest) -> Job:
        """Put a question into the queue.

        Raises:
            Refused: the queue is full.
        """
        job = Job(request)
        with self._lock:
            self.check_room()
            self._pending.add(job)
            if len(self._threads) < min(len(self._pending), self.at_once):
                thread = threading.Thread(target=self._run, name="gog-edge-questions", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(job)
        return job

    def cancel(self, job: Job) -> None:
        """Nobody wants this answer any more. One that waits gives its place up at once. Idempotent."""
        job.budget.cancel()
        with self._lock:
            if job.started or job not in self._pending:
                return
            self._pending.discard(job)
        job.outcome = StopReason.CANCELLED.value
        self.metrics.question(job.outcome, SYSTEM.now() - job.submitted, None, None)

    def close(self, seconds: float) -> None:
        """Cancel everything and wait up to `seconds` for what runs."""
        for job in list(self._pending):
            self.cancel(job)
        until = SYSTEM.now() + seconds
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(until - SYSTEM.now(), 0))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                job.started = job in self._pending
            if job.started:
                self._answer(job)
            with self._lock:
                self._pending.discard(job)
            job.put(None)

    def _answer(self, job: Job) -> None:
        began, job.outcome = SYSTEM.now(), "running"
        try:
            self._ask(job)
        finally:
            seconds = SYSTEM.now() - began
            self.metrics.question(job.outcome, began - job.submitted, seconds, job.usage)

    def _ask(self, job: Job) -> None:
        try:
            for event in self.agent.events(job.request):
                job.put(event)
        except GogEdgeError as e:
            job.put(e)
        except Exception as e:
            log.exception("a question failed unexpectedly")
            job.put(EngineError(f"{type(e).__name__}: {e}"))
