"""Statistics of timings: medians and percentiles with their raw samples, ratios pair by pair."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gog_edge.errors import BenchError


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def settled(call: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of `runs` calls, after a pause and one call that does not count.

    Idle workers of other sessions spin for some milliseconds after their last run, on the cores that this one needs.
    """
    time.sleep(0.05)
    call()
    return [seconds_of(call) for _ in range(runs)]


@dataclass(frozen=True)
class Summary:
    """One measured quantity. `samples` are kept, in the order in which they were taken."""

    unit: str
    samples: tuple[float, ...]
    lower_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.samples or not all(math.isfinite(s) for s in self.samples):
            raise BenchError(f"a summary needs finite samples, not {self.samples!r}")

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def p50(self) -> float:
        return percentile(self.samples, 50)

    @property
    def p95(self) -> float:
        return percentile(self.samples, 95)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def maximum(self) -> float:
        return max(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles as a share of the median: the noise of one sample."""
        if self.n < 2 or self.p50 == 0:
            return 0.0
        return (percentile(self.samples, 75) - percentile(self.samples, 25)) / 2 / abs(self.p50)


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0..100) by linear interpolation between closest ranks."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * q / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """ours / theirs, run by run: both lists come from interleaved runs, so that drift of the machine cancels.

    Raises:
        BenchError: the lists differ in length, or a peer's time is not positive.
    """
    if len(ours) != len(theirs):
        raise BenchError(f"{len(ours)} runs of ours can't be paired with {len(theirs)} of the peer")
    if any(t <= 0 for t in theirs):
        raise BenchError("a peer reported a time of zero or less")
    return Summary("x", tuple(a / b for a, b in zip(ours, theirs)))


def differs(before: Summary, after: Summary, threshold: float = 0.05) -> float:
    """How much `after` is worse than `before`, as a share of `before`, once noise is taken off; 0 when it is not.

    Noise is the larger spread of the two, doubled: about two standard errors for the handful of runs of a scenario.
    """
    if before.p50 == 0:
        return 0.0
    change = after.p50 / before.p50 - 1
    worse = change if before.lower_is_better else -change
    margin = max(threshold, 2 * max(before.spread, after.spread))
    return worse if worse > margin else 0.0
