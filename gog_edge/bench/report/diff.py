"""`bench diff A.json B.json`: what got slower beyond noise. A gate for CI."""

from __future__ import annotations

from dataclasses import dataclass

from gog_edge.bench.result import Cell, Report
from gog_edge.bench.statistics import differs


@dataclass(frozen=True)
class Change:
    """One cell in both reports. `worse`: share by which it got worse beyond noise, 0 when it did not."""

    before: Cell
    after: Cell
    worse: float

    @property
    def ratio(self) -> float:
        return self.after.summary.p50 / self.before.summary.p50


def compare(before: Report, after: Report, threshold: float = 0.05) -> list[Change]:
    """Every cell that both reports measured, the worst first."""
    old = {c.key: c for c in before.cells}
    changes = [
        Change(old[c.key], c, differs(old[c.key].summary, c.summary, threshold))
        for c in after.cells
        if c.key in old and old[c.key].summary.p50
    ]
    return sorted(changes, key=lambda c: -c.worse)


def missing(before: Report, after: Report) -> list[Cell]:
    """Cells that are gone: a gate must not pass because a scenario stopped running."""
    new = {c.key for c in after.cells}
    return [c for c in before.cells if c.key not in new]
