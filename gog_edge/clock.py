"""Time as a question sees it: reading it, waiting in it, being called by it.

A `Budget` carries a clock and everything that decides by time asks the budget's. Tests hand in a clock of their own
whose time passes only when every thread waits, so what a deadline does can be checked to the token on any machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Event(Protocol):
    """The part of `threading.Event` that is used."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within `timeout` seconds of the clock (None: no limit)."""
        ...


class Clock(Protocol):
    """A monotonic clock. Thread-safe."""

    def now(self) -> float:
        """Seconds since some point in the past."""
        ...

    def event(self) -> Event:
        """An event whose waiting is timed by this clock."""
        ...

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` from another thread in `seconds`; returns what cancels it."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.monotonic()

    def event(self) -> Event:
        return threading.Event()

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = threading.Timer(seconds, call)
        timer.daemon = True
        timer.start()
        return timer.cancel


SYSTEM = SystemClock()
