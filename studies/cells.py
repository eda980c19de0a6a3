"""Cells that a study measured, as a report of the form that `gog-edge bench show` reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from gog_edge.bench.machine.probes import describe_machine
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.report.terminal import render
from gog_edge.bench.result import Cell, Report
from gog_edge.errors import GogEdgeError
from gog_edge.serde import encode


def publish(measure: Callable[[], Iterator[Cell]], given: argparse.Namespace, limits: Roofline | None = None) -> int:
    """Measure, print the table and write it to `given.out`; the exit code, 2 with one line where it can't be done."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        roofline = encode(limits) if limits is not None else {}
        report = Report("gog-edge-bench", started, describe_machine(), roofline, {}, tuple(measure()))
        if given.out is not None:
            report.save(given.out)
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    Console().print(render(report))
    return 0


def add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """`--repeats` and `--out`."""
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds")
    parser.add_argument("-o", "--out", type=Path, help="JSON report for gog-edge bench show")
