"""How an export tells what it is doing, and what it cost. The command line draws it; the default says nothing."""

from __future__ import annotations

import sys
from typing import Protocol


class Progress(Protocol):
    """Receives the stages of an export. Amounts are weight values, so that a bar runs evenly."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins; `total` is what its `advance` calls will add up to (0: unknown, brief)."""

    def advance(self, amount: int) -> None:
        """More of the current stage is done."""


class Silent:
    """Reports nothing."""

    def stage(self, name: str, total: int) -> None:
        return

    def advance(self, amount: int) -> None:
        return


def peak_rss() -> int:
    """Greatest resident set of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
