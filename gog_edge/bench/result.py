"""What a benchmark run found: cells of raw samples, ratios, and what was skipped and why. Plain data, one JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gog_edge.bench.statistics import Summary, paired_ratio
from gog_edge.disk.files import write_text
from gog_edge.errors import BenchError
from gog_edge.serde import SerdeError, decode, encode

FORMAT = "gog-edge-bench"


@dataclass(frozen=True)
class Cell:
    """One metric of one stage of one scenario for one subject.

    `x`: position on a growth curve (tokens of context, images, entries), None elsewhere. `limit`: the same metric at
    the machine's roofline, where it can be computed.
    """

    scenario: str
    subject: str
    stage: str
    unit: str
    samples: tuple[float, ...]
    lower_is_better: bool = True
    x: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def summary(self) -> Summary:
        return Summary(self.unit, self.samples, self.lower_is_better)

    @property
    def key(self) -> tuple[str, str, str, float | None]:
        return (self.scenario, self.subject, self.stage, self.x)

    @property
    def of_limit(self) -> float | None:
        """Share of the roofline that is reached, 1 is the limit."""
        if self.limit is None or self.limit <= 0 or self.summary.p50 <= 0:
            return None
        return self.limit / self.summary.p50 if self.lower_is_better else self.summary.p50 / self.limit


@dataclass(frozen=True)
class Report:
    """One run of the suite."""

    format: Literal["gog-edge-bench"]
    started: str
    machine: dict[str, Any]
    roofline: dict[str, Any]
    bundle: dict[str, Any]
    cells: tuple[Cell, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def ratios(self, ours: str = "gog-edge") -> list[tuple[Cell, Cell, Summary]]:
        """(our cell, the peer's cell, ours / theirs run by run) wherever both measured the same thing interleaved.

        Counts of tokens say whether the work was the same; they are not a quantity to improve.
        """
        mine = {(c.scenario, c.stage, c.x): c for c in self.cells if c.subject == ours}
        found = []
        for cell in self.cells:
            base = mine.get((cell.scenario, cell.stage, cell.x))
            if cell.subject == ours or cell.unit == "tokens":
                continue
            if base is None or len(base.samples) != len(cell.samples):
                continue
            found.append((base, cell, paired_ratio(base.samples, cell.samples)))
        return found

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(encode(self), indent=1) + "\n")


def one_of_each(reports: Sequence[Report]) -> list[Cell]:
    """All cells, ours first. What several reports measured is the cell of the one with the most runs, the first of
    equals: never samples of two, so that stages add up and a limit is that of its own run."""
    chosen: dict[tuple[str, str, str, float | None], Cell] = {}
    for cell in (c for report in reports for c in report.cells):
        known = chosen.setdefault(cell.key, cell)
        if len(cell.samples) > len(known.samples):
            chosen[cell.key] = cell
    return sorted(chosen.values(), key=lambda c: c.subject != "gog-edge")


def load(path: Path) -> Report:
    """Read a report.

    Raises:
        BenchError: not a report of this tool.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise BenchError(f"{path} can't be read as a benchmark report: {e}") from e
    try:
        return decode(Report, data, path.name)
    except SerdeError as e:
        raise BenchError(f"{path} is not a benchmark report of this version: {e}") from e
