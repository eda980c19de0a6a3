"""What may end a question from outside: wall time and the caller. One object a question, shared by its threads.

Work that can be interrupted registers a callback (`on_stop`): cancelling, or the clock, then ends a running graph
within milliseconds instead of after a whole prefill chunk.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from gog_edge.clock import SYSTEM, Clock
from gog_edge.errors import CancelledError, GogEdgeError


class DeadlineReached(GogEdgeError):
    """The wall time of this piece of work is over. Internal: the agent turns it into an answer."""


class Budget:
    """Cancellation and a deadline. Thread-safe; use as a context manager so that its timer ends with the question.

    Args:
        seconds: wall time from now; None means no limit.
        parent: a wider budget: its cancellation and deadline hold here too.
        clock: what time is read from; default the parent's, else the machine's.
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        parent: Budget | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock: Clock = clock or (parent.clock if parent else SYSTEM)
        own = math.inf if seconds is None else self.clock.now() + max(seconds, 0.0)
        self._at: float = min(own, parent._at if parent else math.inf)
        self._cancelled = threading.Event()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._parent = parent
        self._stop_timer: Callable[[], None] | None = None

    @property
    def at(self) -> float:
        """The deadline in seconds of the clock; infinity when there is none."""
        return self._at

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set() or (self._parent is not None and self._parent.cancelled)

    @property
    def expired(self) -> bool:
        return self.clock.now() >= self._at

    def remaining(self) -> float:
        """Seconds left, never negative, possibly infinite."""
        return max(self._at - self.clock.now(), 0.0)

    def cancel(self) -> None:
        """End this work (not the parent's): `check` raises from now on, what runs is interrupted. Idempotent, from
        any thread."""
        self._cancelled.set()
        self._fire()

    def check(self) -> None:
        """Go on or not.

        Raises:
            CancelledError: `cancel` was called.
            DeadlineReached: the wall time is over.
        """
        if self.cancelled:
            raise CancelledError("the question was cancelled by the caller")
        if self._at != math.inf and self.expired:
            raise DeadlineReached("the deadline of the question has passed")

    def wait(self, future: Future[Any], timeout: float = math.inf) -> bool:
        """Wait until `future` is done or `timeout` seconds are over; whether it is done.

        Raises:
            CancelledError, DeadlineReached: the budget ended first.
        """
        if future.done():
            return True
        woken = self.clock.event()
        future.add_done_callback(lambda _: woken.set())
        with self.on_stop(woken.set):
            left = min(timeout, self.remaining())
            woken.wait(None if left == math.inf else left)
        if not future.done():
            self.check()
        return future.done()

    @contextlib.contextmanager
    def on_stop(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` (once, from another thread) if the question is cancelled or runs out of time meanwhile."""
        with self._lock:
            key = self._next
            self._next += 1
            self._callbacks[key] = callback
        nested = self._parent.on_stop(callback) if self._parent is not None else contextlib.nullcontext()
        try:
            with nested:
                if self.cancelled:
                    callback()
                yield
        finally:
            with self._lock:
                self._callbacks.pop(key, None)

    def _fire(self) -> None:
        with self._lock:
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()

    def __enter__(self) -> Budget:
        if self._at != math.inf and self._stop_timer is None:
            self._stop_timer = self.clock.later(self.remaining(), self._fire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop_timer is not None:
            self._stop_timer()
            self._stop_timer = None


UNLIMITED = Budget()
