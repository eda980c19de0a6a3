"""The fault harness.

    python -m tests.faults [--minutes M] [--area NAME …] [--seed S] [--write]
    python -m tests.faults --area NAME --seed S --trial N      one trial again, with its traceback

Prints a table (area, tried, failed), with --write also into docs/reliability.md; exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.faults.harness import report
from tests.faults.harness.controller import Result, run
from tests.faults.harness.core import child
from tests.faults.harness.registry import AREAS, named


def main(arguments: list[str]) -> int:
    """Run, print, perhaps write; the exit code."""
    if arguments[:1] == ["--child"]:
        child(named(arguments[1]), arguments[2:])
    parser = argparse.ArgumentParser("python -m tests.faults", description="damage on purpose, counted")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all areas together (default 20)")
    parser.add_argument("--area", action="append", choices=[a.name for a in AREAS], help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=1 << 40, help="at most so many of each area")
    parser.add_argument("--trial", type=int, help="this one alone, with its traceback (needs one --area)")
    parser.add_argument("--write", action="store_true", help="the table into docs/reliability.md")
    options = parser.parse_args(arguments)
    areas = [named(name) for name in options.area] if options.area else list(AREAS)
    if options.trial is not None:
        if len(areas) != 1:
            parser.error("--trial needs one --area")
        os.environ["GOG_FAULTS_TRACE"] = "1"
        result = run(areas[0], options.seed, 3600, first=options.trial, limit=1)
        return _told(result)
    if options.write and options.area:
        parser.error("--write is for a run of all areas")
    results = []
    left, shares = options.minutes * 60, sum(a.share for a in areas)
    for area in areas:  # what one leaves of its time, the others get
        print(f"{area.name} …", end="\r", flush=True)
        result = run(area, options.seed, left * area.share / shares, limit=options.trials)
        left, shares = max(left - result.seconds, 0.0), shares - area.share
        _told(result)
        results.append(result)
    print(f"{sum(r.tried for r in results)} tried, {sum(len(r.failures) for r in results)} failed")
    if options.write:
        report.write(results, options.minutes, options.seed)
    return int(any(r.failures for r in results))


def _told(result: Result) -> int:
    print(report.line(result), flush=True)
    for line in report.failures(result):
        print(line, flush=True)
    return int(bool(result.failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
