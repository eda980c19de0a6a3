"""A clock whose time passes only when every thread of a test waits for it: deadlines without a stopwatch.

A thread takes part if it made the clock or was started by `start` (which stands in for `dispatch.run_in_thread`). As
long as one of them runs, time stands still; when all wait, it jumps to the earliest thing that is due. So what a
machine computes takes no time at all, and what a fake engine or provider waits takes exactly what it was told.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_STUCK_S = 60.0  # of real time: somebody waits for what no thread of the clock will ever do


class VirtualClock:
    """See `gog_edge.deadline.Clock`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # its lock is re-entrant: what is due may set events
        self.running = 1
        self._now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def now(self) -> float:
        with self.changed:
            return self._now

    def event(self) -> VirtualEvent:
        return VirtualEvent(self)

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """`call` happens in the thread that lets the time pass."""
        with self.changed:
            entry = (self._now + max(seconds, 0.0), next(self._number), call)
            heapq.heappush(self._due, entry)

        def cancel() -> None:
            with self.changed:
                if entry in self._due:
                    self._due.remove(entry)
                    heapq.heapify(self._due)

        return cancel

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.event().wait(seconds)

    def start(self, work: Callable[[], Any], name: str) -> Future[Any]:
        """Run `work` in a thread that takes part. Stands in for `gog_edge.agent.dispatch.run_in_thread`."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as e:
                future.set_exception(e)
            finally:
                with self.changed:  # not before the result is there: whoever waits for it runs from then on
                    self.running -= 1
                    self.pass_time()

        with self.changed:
            self.running += 1
        threading.Thread(target=run, name=f"gog-{name}", daemon=True).start()
        return future

    def pass_time(self) -> None:
        """Jump to what is due until somebody runs (call with the lock held)."""
        while self.running == 0 and self._due:
            at, _, call = heapq.heappop(self._due)
            self._now = max(self._now, at)
            call()


class VirtualEvent:
    """An event that is waited for in virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._set = False
        self._sleepers: list[_Sleeper] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._clock.changed:
            self._set = True
            for sleeper in self._sleepers:
                sleeper.wake()

    def wait(self, timeout: float | None = None) -> bool:
        clock = self._clock
        with clock.changed:
            if self._set:
                return True
            sleeper = _Sleeper(clock)
            self._sleepers.append(sleeper)
            cancel = clock.later(timeout, sleeper.wake) if timeout is not None else None
            clock.running -= 1
            clock.pass_time()
            if not clock.changed.wait_for(lambda: sleeper.awake, _STUCK_S):
                raise AssertionError(f"virtual time stands still at {clock.now():g} s: {clock.running} threads run")
            if cancel is not None:
                cancel()
            self._sleepers.remove(sleeper)
            return self._set


class _Sleeper:
    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.awake = False

    def wake(self) -> None:
        if not self.awake:
            self.awake = True
            self._clock.running += 1
            self._clock.changed.notify_all()
