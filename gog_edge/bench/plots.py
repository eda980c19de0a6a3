"""Plots of a report as SVG text, for embedding: latency by stage, distributions, growth curves, the roofline."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from gog_edge.bench.result import Cell
from gog_edge.errors import BenchError

OURS = "#0b7285"
LIMIT = "#c92a2a"
PALETTE = (OURS, "#e8590c", "#5f3dc4", "#2b8a3e", "#868e96")


def _figure(draw: Callable[[Any], None], width: float = 7.5, height: float = 3.2) -> str:
    """Run `draw(axes)` on a fresh figure; the figure as SVG without the XML header."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise BenchError("plots need matplotlib: pip install 'gog-edge[bench]'") from e
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colours(cells: Sequence[Cell]) -> dict[str, str]:
    subjects = sorted({c.subject for c in cells}, key=lambda s: (s != "gog-edge", s))
    return {s: PALETTE[i % len(PALETTE)] for i, s in enumerate(subjects)}


def stages(cells: Sequence[Cell]) -> str:
    """Horizontal bars: the median of every stage by subject, the samples as dots, the roofline as a red mark."""
    names = list(dict.fromkeys(c.stage for c in cells))
    colours = _colours(cells)

    def draw(axes: Any) -> None:
        height = 0.8 / len(colours)
        for i, (subject, colour) in enumerate(colours.items()):
            mine = [c for c in cells if c.subject == subject]
            at = [names.index(c.stage) + (i - (len(colours) - 1) / 2) * height for c in mine]
            axes.barh(at, [c.summary.p50 for c in mine], height * 0.9, color=colour, label=subject)
            for y, cell in zip(at, mine):
                axes.plot(cell.samples, [y] * len(cell.samples), ".", color="black", alpha=0.5, markersize=4)
                if cell.limit is not None:
                    axes.plot([cell.limit] * 2, [y - height / 2, y + height / 2], color=LIMIT, linewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(cells[0].unit)
        if len(colours) > 1:
            axes.legend(frameon=False)

    return _figure(draw, height=1.2 + 0.4 * len(names) * max(1.0, 0.6 * len(colours)))


def growth(cells: Sequence[Cell], xlabel: str) -> str:
    """Lines over `x` on logarithmic axes, the median with its range; the roofline dashed."""
    colours = _colours(cells)

    def draw(axes: Any) -> None:
        for subject, colour in colours.items():
            mine = sorted((c for c in cells if c.subject == subject), key=lambda c: c.x or 0)
            x = [c.x for c in mine]
            axes.plot(x, [c.summary.p50 for c in mine], "o-", color=colour, label=subject)
            axes.fill_between(
                x, [c.summary.minimum for c in mine], [c.summary.maximum for c in mine], color=colour, alpha=0.2
            )
            bound = [(c.x, c.limit) for c in mine if c.limit is not None]
            if bound:
                axes.plot(*zip(*bound), "--", color=LIMIT, label=f"limit ({subject})")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"{cells[0].stage} ({cells[0].unit})")
        axes.legend(frameon=False)

    return _figure(draw)


def distribution(cells: Sequence[Cell]) -> str:
    """Every sample by subject, sorted: the empirical distribution of one stage."""
    colours = _colours(cells)

    def draw(axes: Any) -> None:
        for cell in cells:
            ordered = sorted(cell.samples)
            share = [(i + 1) / len(ordered) for i in range(len(ordered))]
            axes.step(ordered, share, where="post", color=colours[cell.subject], label=cell.subject)
        axes.set_xlabel(f"{cells[0].stage} ({cells[0].unit})")
        axes.set_ylabel("share of runs")
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False)

    return _figure(draw, height=2.6)
