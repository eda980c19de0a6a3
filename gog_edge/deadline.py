"""Time as a question sees it: the clock it reads, what may end it from outside, and what is kept for its answer.

A `Budget` carries a clock and everything that decides by time asks the budget's. Tests hand in a clock of their own
whose time passes only when every thread waits, so what a deadline does can be checked to the token on any machine.
Work that can be interrupted registers a callback (`Budget.on_stop`): cancelling, or the clock, then ends a running
graph within milliseconds instead of after a whole prefill chunk.
"""

from __future__ import annotations

import math
import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Union

from gog_edge.errors import CancelledError, GogEdgeError, UsageError

ANSWER_TOKENS = 32  # a forced answer is given time for this many tokens
FOREVER_S = 4e6  # 46 days: more than that is no limit, and more than some systems can wait for
_MARGIN_S = 0.05
_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|m|h|)", re.ASCII)
Duration = Union[float, str]
"""Seconds as a number, or a number with its unit: "2s", "500ms", "1.5m"."""
_FIRST_SHARE = 0.25  # of the whole time, kept for the answer before anything was measured
_MOST_SHARE = 0.5


def seconds_of(value: Duration, what: str = "a duration") -> float:
    """`value` in seconds; `what` it is, for the message.

    Raises:
        UsageError: it is not above zero, or can't be read.
    """
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        seconds = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
        if not seconds > 0:
            raise UsageError(f"{what} of {value!r} is no time: write 2s or 500ms")
        return seconds
    if not value > 0:
        raise UsageError(f"{what} of {value} s leaves no time: give a positive number of seconds")
    return float(value)


class WaitedEvent(Protocol):
    """The part of `threading.Event` that is used."""

    def set(self) -> None: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within `timeout` seconds of the clock (None: no limit)."""
        ...


class Clock(Protocol):
    """A monotonic clock. Thread-safe."""

    def now(self) -> float:
        """Seconds since some point in the past."""
        ...

    def event(self) -> WaitedEvent:
        """An event whose waiting is timed by this clock."""
        ...

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` from another thread in `seconds`; returns what cancels it."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.monotonic()

    def event(self) -> WaitedEvent:
        return threading.Event()

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = threading.Timer(seconds, call)
        timer.daemon = True
        timer.start()
        return timer.cancel


SYSTEM = SystemClock()


class DeadlineReached(GogEdgeError):
    """The wall time of this piece of work is over. Internal: the agent turns it into an answer."""


class Budget:
    """Cancellation and a deadline: one object a question, shared by its threads. Use it as a context manager, so that
    its timer ends with the question.

    Args:
        seconds: wall time from now, as a number or like "2s"; None, or more than `FOREVER_S`, means no limit.
        parent: a wider budget: its cancellation and deadline hold here too.
        clock: what time is read from; default the parent's, else the machine's.
    """

    def __init__(
        self, seconds: Duration | None = None, *, parent: Budget | None = None, clock: Clock | None = None
    ) -> None:
        seconds = seconds_of(seconds) if isinstance(seconds, str) else seconds
        self.clock: Clock = clock or (parent.clock if parent else SYSTEM)
        own = math.inf if seconds is None or seconds > FOREVER_S else self.clock.now() + max(seconds, 0.0)
        self._at: float = min(own, parent._at if parent else math.inf)
        self._lock = threading.Lock()
        self._cancelled = False
        self._watches: set[_Watch] = set()
        self._narrower: weakref.WeakSet[Budget] = weakref.WeakSet()
        self._stop_timer: Callable[[], None] | None = None
        if parent is not None:
            with parent._lock:  # a parent that is cancelled tells those that it knows; this one knows itself
                parent._narrower.add(self)
                self._cancelled = parent._cancelled

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def remaining(self) -> float:
        """Seconds left, never negative, possibly infinite."""
        return max(self._at - self.clock.now(), 0.0)

    def cancel(self) -> None:
        """End this work (not the parent's): `check` raises from now on, what runs is interrupted. Idempotent, from
        any thread."""
        with self._lock:
            self._cancelled = True
            narrower, watches = list(self._narrower), list(self._watches)
        for budget in narrower:
            budget.cancel()
        for watch in watches:
            watch.callback()

    def check(self) -> None:
        """Continue or stop.

        Raises:
            CancelledError: `cancel` was called.
            DeadlineReached: the wall time is over.
        """
        if self._cancelled:
            raise CancelledError("the question was cancelled by the caller")
        if self._at != math.inf and self.clock.now() >= self._at:
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

    def on_stop(self, callback: Callable[[], None]) -> _Watch:
        """A context that calls `callback`, from another thread, if the question is cancelled or runs out of time
        meanwhile."""
        return _Watch(self, callback)

    def _expire(self) -> None:
        """The timer's: interrupt what runs under this budget and those below it."""
        with self._lock:
            narrower, watches = list(self._narrower), list(self._watches)
        for budget in narrower:
            budget._expire()
        for watch in watches:
            watch.callback()

    def __enter__(self) -> Budget:
        if self._at != math.inf and self._stop_timer is None:
            self._stop_timer = self.clock.later(self.remaining(), self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop_timer is not None:
            self._stop_timer()
            self._stop_timer = None


class _Watch:
    """A callback while its context is open."""

    __slots__ = ("_budget", "callback")

    def __init__(self, budget: Budget, callback: Callable[[], None]) -> None:
        self._budget, self.callback = budget, callback

    def __enter__(self) -> None:
        budget = self._budget
        with budget._lock:
            budget._watches.add(self)
        if budget._cancelled:
            self.callback()

    def __exit__(self, *_: object) -> None:
        with self._budget._lock:
            self._budget._watches.discard(self)


UNLIMITED = Budget()


@dataclass
class Pace:
    """How fast this machine is: seconds per prefilled and per written token, smoothed; None until measured."""

    prefill_s: float | None = None
    token_s: float | None = None

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A prefill of `tokens` took `seconds`."""
        if tokens >= 8:  # fewer say more about one step's overhead than about the rate
            rate = seconds / tokens
            self.prefill_s = rate if self.prefill_s is None else self.prefill_s + 0.5 * (rate - self.prefill_s)

    def wrote(self, seconds: float | None) -> None:
        """Seconds of a decoding step, smoothed elsewhere."""
        self.token_s = seconds if seconds is not None else self.token_s

    def reading(self, tokens: int) -> float:
        """Seconds that reading `tokens` will take; 0 while nothing is known."""
        return tokens * (self.prefill_s or self.token_s or 0.0)

    def reserve(self, forced_tokens: int, total: float) -> float:
        """Seconds to keep for the forced answer of a question that has `total` seconds in all."""
        if math.isinf(total):
            return 0.0
        if self.token_s is None:
            return _FIRST_SHARE * total
        wanted = self.reading(forced_tokens) + ANSWER_TOKENS * self.token_s + _MARGIN_S
        return min(wanted, _MOST_SHARE * total)
