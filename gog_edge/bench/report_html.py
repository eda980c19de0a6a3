"""A report as one HTML file without outside references: machine, plots, tables, raw data."""

from __future__ import annotations

import html
import json
from pathlib import Path

from gog_edge.bench import plots
from gog_edge.bench.report import format_place, format_value
from gog_edge.bench.result import Cell, Report
from gog_edge.codec import encode

_STYLE = """
:root { color-scheme: light; --ink: #212529; --soft: #868e96; --line: #dee2e6; --ours: #0b7285; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .7rem; text-align: right; }
td:first-child, th:first-child, td.text { text-align: left; } th { color: var(--soft); font-weight: 500; }
tr.ours td { color: var(--ours); font-weight: 600; } .soft { color: var(--soft); }
svg { max-width: 100%; height: auto; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.better { color: #2b8a3e; } .worse { color: #c92a2a; } details { margin-top: 2rem; } pre { overflow: auto; }
"""


def write(report: Report, path: Path) -> None:
    """Write the page; raises BenchError where matplotlib is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report), "utf-8")


def page(report: Report) -> str:
    """The whole page."""
    sections = [_machine(report), _ratios(report)]
    for scenario in dict.fromkeys(c.scenario for c in report.cells):
        sections.append(_scenario(scenario, [c for c in report.cells if c.scenario == scenario]))
    sections.append(_skipped(report))
    raw = html.escape(json.dumps(encode(report), indent=1))
    sections.append(f"<details><summary>raw data</summary><pre>{raw}</pre></details>")
    title = f"gog-edge bench, {report.started}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )


def _machine(report: Report) -> str:
    facts = {**report.machine, "bundle": report.bundle.get("name"), "roofline": report.roofline}
    rows = "".join(
        f"<tr><td>{html.escape(k)}<td class=text>{html.escape(_plain(v))}" for k, v in facts.items() if v is not None
    )
    return f"<h2>machine</h2><table>{rows}</table>"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scenario(name: str, cells: list[Cell]) -> str:
    drawn: list[str] = []
    flat = [c for c in cells if c.x is None]
    for unit in dict.fromkeys(c.unit for c in flat):
        drawn.append(plots.stages([c for c in flat if c.unit == unit]))
    curves = [c for c in cells if c.x is not None]
    for stage in dict.fromkeys(c.stage for c in curves):
        drawn.append(plots.growth([c for c in curves if c.stage == stage], name))
    totals = [c for c in flat if c.stage == "total" and len(c.samples) > 2]
    if totals:
        drawn.append(plots.distribution(totals))
    head = "<tr><th>stage<th>at<th>subject<th>p50<th>p95<th>min<th>n<th>limit<th>of limit<th>"
    rows = "".join(_row(c) for c in cells)
    figures = "".join(f"<div>{d}</div>" for d in drawn)
    return f"<h2>{html.escape(name)}</h2><div class=plots>{figures}</div><table>{head}{rows}</table>"


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


def _ratios(report: Report) -> str:
    rows = []
    for ours, theirs, ratio in report.ratios():
        kind = "better" if (ratio.p50 < 1) == ours.lower_is_better else "worse"
        rows.append(
            f"<tr><td>{html.escape(ours.scenario)}<td class=text>{html.escape(ours.stage)}"
            f"<td class=text>{html.escape(theirs.subject)}<td class={kind}>{ratio.p50:.2f}x"
            f"<td class=soft>{ratio.minimum:.2f} to {ratio.maximum:.2f}"
        )
    if not rows:
        return ""
    head = "<tr><th>scenario<th>stage<th>peer<th>ours / theirs<th>range"
    return f"<h2>against peers</h2><table>{head}{''.join(rows)}</table>"


def _skipped(report: Report) -> str:
    if not report.skipped:
        return ""
    rows = "".join(f"<tr><td>{html.escape(k)}<td class=text>{html.escape(v)}" for k, v in report.skipped.items())
    return f"<h2>not measured</h2><table>{rows}</table>"
