"""A report for people: tables on the terminal. The HTML twin is `report_html`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gog_edge.bench.result import Cell, Report


def render(report: Report) -> RenderableType:
    """All cells by scenario, then the ratios against peers, then what was not measured."""
    scenarios = dict.fromkeys(c.scenario for c in report.cells)
    parts: list[RenderableType] = [header(report)]
    parts.extend(_cells(name, [c for c in report.cells if c.scenario == name]) for name in scenarios)
    if report.ratios():
        parts.append(_ratios(report))
    parts.extend(Text(f"not measured: {what}: {why}", style="yellow") for what, why in report.skipped.items())
    return Group(*parts)


def header(report: Report) -> Text:
    """The machine and its limits in two lines."""
    m, r = report.machine, report.roofline
    gemm = ", ".join(f"{k} {v:.0f}" for k, v in r.get("gemm", {}).items())
    limits = f"limits of this run: read {r['read_gbs']:.1f} GB/s; GEMM GFLOP/s: {gemm}" if r else "limits not measured"
    return Text(f"{m.get('cpu')}, {m.get('cores')} cores, load {m.get('load')}, git {m.get('git')}\n{limits}")


def format_value(value: float, unit: str) -> str:
    """Seconds as ms below one, everything else with three significant digits."""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "B":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def format_place(x: float | None) -> str:
    """Where on its scale a cell was measured: whole numbers with separators, 0.2 as it is."""
    if x is None:
        return ""
    return f"{x:,.0f}" if x == int(x) else f"{x:g}"


def _cells(scenario: str, cells: Iterable[Cell]) -> Table:
    table = Table(title=scenario, title_justify="left", box=None)
    for name in ("stage", "at", "subject", "p50", "p95", "min", "n", "limit", "of limit", ""):
        table.add_column(name, justify="left" if name in ("stage", "subject", "") else "right", no_wrap=name != "")
    for cell in cells:
        s = cell.summary
        share = cell.of_limit
        table.add_row(
            cell.stage,
            format_place(cell.x),
            cell.subject,
            format_value(s.p50, s.unit),
            format_value(s.p95, s.unit),
            format_value(s.minimum, s.unit),
            str(s.n),
            "" if cell.limit is None else format_value(cell.limit, s.unit),
            "" if share is None else f"{share:.0%}",
            cell.note,
        )
    return table


def _ratios(report: Report) -> Table:
    table = Table(title="against peers (ours / theirs, interleaved runs)", title_justify="left", box=None)
    for name in ("scenario", "stage", "at", "peer", "ratio", "worst", "best"):
        table.add_column(name, no_wrap=True)
    for ours, theirs, ratio in report.ratios():
        good = (ratio.p50 < 1) == ours.lower_is_better
        ends = (ratio.maximum, ratio.minimum) if ours.lower_is_better else (ratio.minimum, ratio.maximum)
        table.add_row(
            ours.scenario,
            ours.stage,
            format_place(ours.x),
            theirs.subject,
            Text(f"{ratio.p50:.2f}x", style="green" if good else "red"),
            f"{ends[0]:.2f}x",
            f"{ends[1]:.2f}x",
        )
    return table
