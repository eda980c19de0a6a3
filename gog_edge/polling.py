"""A reading taken again and again by a thread, while a piece of work runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

S = TypeVar("S", bound="Poller")


class Poller(ABC):
    """Calls `sample` when the context opens, every `interval` seconds while it is open, and when it closes."""

    def __init__(self, interval: float) -> None:
        self._interval, self._stop = interval, threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def sample(self) -> None:
        """Take one reading; from the caller's thread or from the poller's own, never from both at once."""

    def __enter__(self: S) -> S:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()
