"""The table of a run: for the terminal, and between the marks of docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from tests.faults.harness.controller import Result
from tests.tools import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def ended(result: Result) -> str:
    """In what the trials ended, the most frequent first."""
    return ", ".join(f"{count} {word}" for word, count in result.ended.most_common())


def line(result: Result) -> str:
    """One area as text."""
    if result.unavailable:
        return f"{result.area.name:<12} not run: {result.unavailable}"
    failed = len(result.failures)
    counts = f"{result.tried:>7} tried {failed:>4} failed  {result.seconds:5.0f} s"
    return f"{result.area.name:<12} {counts}  {ended(result)}"


def failures(result: Result, most: int = 12) -> list[str]:
    """What went wrong, each with the command that has it again."""
    lines = [f"  {what}\n      {result.again(number)}" for number, what in result.failures[:most]]
    left = len(result.failures) - most
    return [*lines, *([f"  … and {left} more"] if left > 0 else [])]


def table(results: Sequence[Result], minutes: float, seed: int) -> str:
    """The block between the marks."""
    rows = [
        f"| {r.area.name} | {r.area.promise} | "
        + (f"not run: {r.unavailable} | | |" if r.unavailable else f"{r.tried} | {len(r.failures)} | {ended(r)} |")
        for r in results
    ]
    tried, failed = sum(r.tried for r in results), sum(len(r.failures) for r in results)
    took = sum(r.seconds for r in results) / 60
    load = os.getloadavg()[0]
    return "\n".join(
        [
            BEGIN,
            f"`make faults MINUTES={minutes:g} SEED={seed}`: {tried} trials in {took:.0f} minutes on {os.cpu_count()} "
            f"cores ({platform.machine()}, load {load:.0f} at the end), {failed} failed.",
            "",
            "| area | each trial ends in | tried | failed | ended as |",
            "|---|---|---|---|---|",
            *rows,
            END,
        ]
    )


def written(page: str, block: str) -> str:
    """`page` with its block replaced."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + block + tail


def write(results: Sequence[Result], minutes: float, seed: int, page: Path = PAGE) -> None:
    """Put the table of a run into the page."""
    page.write_text(written(page.read_text("utf-8"), table(results, minutes, seed)), "utf-8")
