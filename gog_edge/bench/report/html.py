"""A report as one HTML file without outside references: machine, plots, tables, raw data."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from gog_edge.bench.report import plots
from gog_edge.bench.report.terminal import format_place, format_value
from gog_edge.bench.result import Cell, Report, one_of_each
from gog_edge.bench.statistics import Summary
from gog_edge.bench.suite import BESIDE
from gog_edge.disk.files import write_text
from gog_edge.serde import encode

_AXES = {  # what a scenario's curves grow with
    "growth-context": "tokens of context",
    "growth-images": "images",
    "growth-pixels": "megapixels",
    "questions": "questions about one frame",
    "batch": "conversations",
    "camera": "frames a second",
    "index": "entries",
    "operators": "tokens of context",
    "search": "seconds that a provider takes",
}
_STYLE = """
:root { color-scheme: light; --ink: #212529; --soft: #868e96; --line: #dee2e6; --ours: #0b7285; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .7rem; text-align: right; vertical-align: top; }
td:first-child, th:first-child, .text { text-align: left; }
td:first-child { white-space: nowrap; } th { color: var(--soft); font-weight: 500; }
tr.ours td { color: var(--ours); font-weight: 600; } .soft { color: var(--soft); }
svg { max-width: 100%; height: auto; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots > div { flex: 1 1 30rem; max-width: 45rem; min-width: 0; }
.ratios { margin-bottom: 1rem; }
.cells { display: block; overflow-x: auto; font-size: .85rem; }
.cells td, .cells th { padding: .1rem .5rem; } .cells td { white-space: nowrap; }
.cells td:nth-child(3), .cells td:last-child { text-align: left; }
.cells td:last-child { white-space: normal; min-width: 12rem; color: var(--soft); font-weight: 400; }
.better { color: #2b8a3e; } .worse { color: #c92a2a; }
details { margin-top: 2rem; } pre { overflow: auto; }
"""


def write(reports: Sequence[Report], path: Path) -> None:
    """Write one page for one report, or for several of one machine; raises BenchError where matplotlib is missing."""
    write_text(path, page(reports))


def page(reports: Sequence[Report]) -> str:
    """The whole page. What several measured comes from the one with most runs; ratios stay within their own report."""
    cells = one_of_each(reports)
    sections = [_overview(cells), _ratios(reports), _machine(reports)]
    for scenario in dict.fromkeys(c.scenario for c in cells):
        sections.append(_scenario(scenario, [c for c in cells if c.scenario == scenario]))
    sections.append(_skipped(reports))
    raw = html.escape(json.dumps([encode(report) for report in reports], indent=1))
    sections.append(f"<details><summary>raw data</summary><pre>{raw}</pre></details>")
    title = f"gog-edge bench, {reports[0].started}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )


def _machine(reports: Sequence[Report]) -> str:
    first = reports[0]
    facts = {**first.machine, "peers": {k: v for r in reports for k, v in r.machine.get("peers", {}).items()}}
    if size := facts.pop("memory_bytes", None):
        facts["memory"] = f"{size / 2**30:.1f} GiB"
    rows = [(k, _plain(v)) for k, v in facts.items() if v not in (None, {})]
    for report in reports:
        limits = report.roofline
        measured = f"read {limits['read_gbs']:.1f} GB/s, GEMM {_plain(limits['gemm'])} GFLOP/s" if limits else ""
        rows.append((f"run of {report.started[11:16]}", f"git {report.machine.get('git')}, {measured or 'no limits'}"))
    rows += [("bundle", _plain(bundle)) for bundle in {str(r.bundle): r.bundle for r in reports if r.bundle}.values()]
    body = "".join(f"<tr><td>{html.escape(k)}<td class=text>{html.escape(v)}" for k, v in rows)
    return f"<h2>machine</h2><table>{body}</table>"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _overview(cells: Sequence[Cell]) -> str:
    """What a reader looks for first: where the time of the agent job goes, and how far from the limits it is."""
    parts = []
    for scenario in ("agent", "agent-text"):
        shown = [c for c in cells if c.scenario == scenario and c.unit == "s"]
        if shown:
            parts.append(f"<h2>{scenario}: where the time goes</h2><div>{plots.waterfall(shown)}</div>")
    limited = [c for c in cells if c.subject == "gog-edge" and c.x is None and c.of_limit is not None]
    beside = {(c.scenario, c.stage.removesuffix(BESIDE)) for c in limited if c.stage.endswith(BESIDE)}
    decodes = {(scenario, f"{turn}decode") for scenario, turn in beside}  # limit: the bandwidth of the same minute
    limited = [c for c in limited if c.unit in ("s", "%") and (c.scenario, c.stage) not in decodes]
    limited = [c for c in limited if not c.stage.endswith("total")]
    if limited:
        parts.append(f"<h2>how near to the machine's limits</h2><div>{plots.shares(limited)}</div>")
    return "".join(parts)


def _scenario(name: str, cells: list[Cell]) -> str:
    drawn: list[str] = []
    flat = [c for c in cells if c.x is None]
    for unit in dict.fromkeys(c.unit for c in flat if c.unit != "tokens"):
        drawn.append(plots.stages([c for c in flat if c.unit == unit]))
    curves = [c for c in cells if c.x is not None]
    for stage in dict.fromkeys(c.stage for c in curves if c.unit != "tokens"):
        drawn.append(plots.growth([c for c in curves if c.stage == stage], _AXES.get(name, name)))
    totals = [c for c in flat if c.stage == "total" and len(c.samples) > 2]
    if totals:
        drawn.append(plots.distribution(totals))
    head = "<tr><th>stage<th>at<th class=text>subject<th>p50<th>p95<th>min<th>n<th>limit<th>of limit<th>"
    rows = "".join(_row(c) for c in cells)
    figures = "".join(f"<div>{d}</div>" for d in drawn)
    return f"<h2>{html.escape(name)}</h2><div class=plots>{figures}</div><table class=cells>{head}{rows}</table>"


def _row(cell: Cell) -> str:
    s, share = cell.summary, cell.of_limit
    values = [
        cell.stage,
        format_place(cell.x),
        cell.subject,
        *(format_value(v, s.unit) for v in (s.p50, s.p95, s.minimum)),
        str(s.n),
        "" if cell.limit is None else format_value(cell.limit, s.unit),
        "" if share is None else f"{share:.0%}",
        cell.note,
    ]
    kind = " class=ours" if cell.subject == "gog-edge" else ""
    return f"<tr{kind}>" + "".join(f"<td>{html.escape(v)}" for v in values)


def _ratios(reports: Sequence[Report]) -> str:
    """A table per scenario: a row per stage, a column per peer, the range of the runs in the cell's tooltip."""
    found = [ratio for report in reports for ratio in report.ratios()]
    if not found:
        return ""
    parts = ["<h2>against peers: ours / theirs, run by run</h2>"]
    for scenario in dict.fromkeys(ours.scenario for ours, _, _ in found):
        mine = [f for f in found if f[0].scenario == scenario]
        peers = list(dict.fromkeys(theirs.subject for _, theirs, _ in mine))
        table = {(_at(f[0]), f[1].subject): f for f in mine}
        rows = []
        for stage in dict.fromkeys(_at(ours) for ours, _, _ in mine):
            cells = "".join(_ratio_cell(table.get((stage, peer))) for peer in peers)
            rows.append(f"<tr><td>{html.escape(stage)}{cells}")
        head = f"<tr><th>{html.escape(scenario)}" + "".join(f"<th>{html.escape(p)}" for p in peers)
        parts.append(f"<table class=ratios>{head}{''.join(rows)}</table>")
    return "".join(parts)


def _at(cell: Cell) -> str:
    return cell.stage if cell.x is None else f"{cell.stage} at {cell.x:,.0f}"


def _ratio_cell(found: tuple[Cell, Cell, Summary] | None) -> str:
    if found is None:
        return "<td>"
    ours, theirs, ratio = found
    kind = "better" if (ratio.p50 < 1) == ours.lower_is_better else "worse"
    if theirs.subject.startswith(ours.subject):  # ourselves with other settings: no peer
        kind = "soft"
    span = f"{ratio.minimum:.2f} to {ratio.maximum:.2f} in {ratio.n} run{'s' if ratio.n > 1 else ''}"
    return f'<td class={kind} title="{span}">{ratio.p50:.2f}x'


def _skipped(reports: Sequence[Report]) -> str:
    skipped = {k: v for report in reports for k, v in report.skipped.items()}
    if not skipped:
        return ""
    rows = "".join(f"<tr><td>{html.escape(k)}<td class=text>{html.escape(v)}" for k, v in skipped.items())
    return f"<h2>not measured</h2><table>{rows}</table>"
