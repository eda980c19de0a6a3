"""Is this version slower than an earlier one? `gog-edge bench` of two installations in turns, compared pair by pair.

    python -m studies.two_versions PYTHON=BUNDLE PYTHON=BUNDLE --rounds 12 --out reports
    gog-edge bench diff reports/before.json reports/after.json

PYTHON is the interpreter of an environment that has one version installed, BUNDLE what that version exported. Every
round starts a new process of each, so that the first load is one from nothing, and the two take turns at going first.
PYTHONPATH and PYTHONDONTWRITEBYTECODE are taken out of their environment: the one would show both the same package, the
other would have the version with more sources compile them at every start. Needs the base install.

A column "paired" is the median of after / before, round by round: a machine that drifts drifts for both of a pair.
Where other programs run, several times as many rounds are needed, and the smallest of each is worth a look.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gog_edge.bench.result import Cell, Report, load
from gog_edge.bench.statistics import Summary, paired_ratio
from gog_edge.errors import BenchError

SCENARIOS = ("prefill", "decode", "agent")
_DROPPED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


def measured(python: str, bundle: str, scenarios: Sequence[str], repeats: int, out: Path) -> Report:
    """The report of one fresh process.

    Raises:
        BenchError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    command = [python, "-m", "gog_edge", "bench", *scenarios, "--bundle", str(Path(bundle).resolve()), "--no-roofline"]
    command += ["--repeats", str(repeats), "--out", str(out)]
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{python} -m gog_edge bench failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return load(out)


def merged(rounds: Sequence[Report]) -> Report:
    """One report with the samples of all rounds, in their order; cells that a round lacks are left out."""
    samples: dict[object, list[float]] = {}
    for report in rounds:
        for cell in report.cells:
            samples.setdefault(cell.key, []).extend(cell.samples)
    whole = [c for c in rounds[0].cells if all(any(o.key == c.key for o in r.cells) for r in rounds)]
    return replace(rounds[0], cells=tuple(replace(c, samples=tuple(samples[c.key])) for c in whole))


def paired(before: Sequence[Report], after: Sequence[Report], cell: Cell) -> Summary:
    """after / before of the medians of each round."""
    ours, theirs = (
        [next(c for c in report.cells if c.key == cell.key).summary.p50 for report in reports]
        for reports in (after, before)
    )
    return paired_ratio(ours, theirs)


def shown(value: float, unit: str) -> str:
    """A figure for people."""
    if unit == "s":
        return f"{1e3 * value:.1f} ms"
    return f"{value / 2**20:.1f} MiB" if unit == "B" else f"{value:.0f} {unit}"


def table(before: Sequence[Report], after: Sequence[Report]) -> list[str]:
    """Markdown: every cell of ours that both have, but for counts of tokens."""
    old, new = merged(before), {c.key: c for c in merged(after).cells}
    lines = ["| scenario | stage | before | after | medians | smallest | paired |", "|---|---|---|---|---|---|---|"]
    for a in old.cells:
        b = new.get(a.key)
        if b is None or a.unit == "tokens" or a.subject != "gog-edge" or a.summary.p50 <= 0:
            continue
        best = b.summary.minimum / a.summary.minimum if a.lower_is_better else b.summary.maximum / a.summary.maximum
        cells = (shown(a.summary.p50, a.unit), shown(b.summary.p50, a.unit))
        ratios = (b.summary.p50 / a.summary.p50, best, paired(before, after, a).p50)
        lines.append(f"| {' | '.join([a.scenario, a.stage, *cells, *(f'{r:.2f}x' for r in ratios)])} |")
    return lines


def main() -> None:
    """Print the table and write both reports."""
    parser = argparse.ArgumentParser(prog="python -m studies.two_versions", description=__doc__)
    parser.add_argument("before", metavar="PYTHON=BUNDLE")
    parser.add_argument("after", metavar="PYTHON=BUNDLE")
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of a scenario in a process")
    parser.add_argument("--out", type=Path, help="folder for before.json and after.json")
    options = parser.parse_args()
    versions = [pair.rpartition("=") for pair in (options.before, options.after)]
    if options.rounds < 1 or not all(python and bundle for python, _, bundle in versions):
        parser.error("write each version as PYTHON=BUNDLE, and at least one round")
    reports: tuple[list[Report], list[Report]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                out = Path(folder) / f"{number}-{which}.json"
                python, _, bundle = versions[which]
                reports[which].append(measured(python, bundle, options.scenarios, options.repeats, out))
            print(f"round {number + 1}/{options.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, rounds in zip(("before", "after"), reports):
            merged(rounds).save(options.out / f"{name}.json")
    print("\n".join(table(*reports)))


if __name__ == "__main__":
    try:
        main()
    except BenchError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
