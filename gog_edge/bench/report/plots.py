"""Plots of a report as SVG text, for embedding: latency by stage, distributions, growth curves, the roofline."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from gog_edge.bench.report.terminal import format_place
from gog_edge.bench.result import Cell
from gog_edge.errors import BenchError

OURS = "#0b7285"
LIMIT = "#c92a2a"
PALETTE = ("#e64980", "#a6761d", "#1c7ed6", "#495057", "#82c91e")
SUBJECTS = {  # the same in all plots of a page
    "gog-edge": OURS,
    "llama.cpp": "#e8590c",
    "openvino-genai": "#5f3dc4",
    "openvino-genai:sdpa": "#9775fa",
    "onnxruntime-genai": "#2b8a3e",
    "transformers": "#868e96",
}
SCALES = {"B": (2.0**-20, "MiB")}  # of units that are not shown as they are measured


def require_matplotlib() -> None:
    """Ask this before measuring for a page.

    Raises:
        BenchError: matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as e:
        raise BenchError("plots need matplotlib: pip install 'gog-edge[bench]'") from e


def _figure(draw: Callable[[Any], None], width: float = 7.5, height: float = 3.2) -> str:
    """Run `draw(axes)` on a fresh figure; the figure as SVG without the XML header."""
    require_matplotlib()
    from matplotlib.figure import Figure

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
    others = [s for s in subjects if s not in SUBJECTS]
    return {s: SUBJECTS.get(s) or PALETTE[others.index(s) % len(PALETTE)] for s in subjects}


def stages(cells: Sequence[Cell]) -> str:
    """Horizontal bars: the median of every stage by subject, the samples as dots, the roofline as a red mark."""
    names = list(dict.fromkeys(c.stage for c in cells))
    colours = _colours(cells)
    scale, unit = SCALES.get(cells[0].unit, (1.0, cells[0].unit))

    def draw(axes: Any) -> None:
        height = 0.8 / len(colours)
        for i, (subject, colour) in enumerate(colours.items()):
            mine = [c for c in cells if c.subject == subject]
            at = [names.index(c.stage) + (i - (len(colours) - 1) / 2) * height for c in mine]
            axes.barh(at, [scale * c.summary.p50 for c in mine], height * 0.9, color=colour, label=subject)
            for y, cell in zip(at, mine):
                axes.plot(
                    [scale * s for s in cell.samples],
                    [y] * len(cell.samples),
                    ".",
                    color="black",
                    alpha=0.5,
                    markersize=4,
                )
                if cell.limit is not None:
                    axes.plot([scale * cell.limit] * 2, [y - height / 2, y + height / 2], color=LIMIT, linewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        if len(colours) > 1:
            _legend_below(axes, len(colours))

    return _figure(draw, height=1.4 + 0.3 * len(names) * max(1.0, 0.6 * len(colours)))


STAGES = {"crop": "#adb5bd", "encode": "#0b7285", "prefill": "#f59f00", "first token": "#9c9ea3", "decode": "#5f3dc4"}
REST = "#e9ecef"


def waterfall(cells: Sequence[Cell]) -> str:
    """One bar per subject: the stages of all turns one after another, by their medians.

    What a subject spends before its first token without telling stages apart is one segment; what is left of a turn's
    total is pale. Every turn ends with a white line.
    """
    subjects = list(_colours(cells))
    turns = list(dict.fromkeys(c.stage.removesuffix(" total") for c in cells if c.stage.endswith(" total"))) or [""]
    found = {(c.subject, c.stage): c.summary.p50 for c in cells}

    def draw(axes: Any) -> None:
        for row, subject in enumerate(subjects):
            left = 0.0
            for turn in turns:
                start, label = left, f"{turn} " if turn else ""
                known = [s for s in STAGES if s != "first token" and (subject, label + s) in found]
                if not {"encode", "prefill"} & set(known):
                    known = ["first token", *known]
                for stage in known:
                    width = found.get((subject, label + stage), 0.0)
                    axes.barh(row, width, 0.62, left=left, color=STAGES[stage])
                    left += width
                end = start + found.get((subject, f"{label}total"), left - start)
                axes.barh(row, max(end - left, 0.0), 0.62, left=left, color=REST)
                left = max(end, left)
                axes.plot([left] * 2, [row - 0.31, row + 0.31], color="white", linewidth=2)
            # the job's own median: medians of stages add up to nearly that
            axes.text(left, row, f" {found.get((subject, 'total'), left):.3g} s", va="center", fontsize=9)
        axes.set_yticks(range(len(subjects)), subjects)
        axes.invert_yaxis()
        axes.set_xlabel("s")
        axes.margins(x=0.08)
        for stage, colour in {**STAGES, "other": REST}.items():
            axes.barh(
                0, 0, color=colour, label=stage if stage != "first token" else "until the first token, not told apart"
            )
        _legend_below(axes, 3)

    return _figure(draw, width=9.5, height=1.5 + 0.45 * len(subjects))


def shares(cells: Sequence[Cell]) -> str:
    """Our stages as a share of the machine's limit, which is the red line."""
    shown = [c for c in cells if c.of_limit is not None]

    def draw(axes: Any) -> None:
        values = [100 * (c.of_limit or 0.0) for c in shown]
        axes.barh(range(len(shown)), values, 0.62, color=OURS)
        for row, value in enumerate(values):
            axes.text(value, row, f" {value:.0f} %", va="center", fontsize=9)
        axes.axvline(100, color=LIMIT, linewidth=1.5)
        axes.set_yticks(range(len(shown)), [f"{c.scenario}: {c.stage}" for c in shown])
        axes.invert_yaxis()
        axes.set_xlabel("% of the roofline that was measured in the same run")

    return _figure(draw, width=9.5, height=1.2 + 0.3 * len(shown))


def _legend_below(axes: Any, columns: int) -> None:
    axes.figure.legend(frameon=False, ncols=min(columns, 4), loc="outside lower center", fontsize=9)


def growth(cells: Sequence[Cell], xlabel: str) -> str:
    """Lines over `x` on logarithmic axes, the median with its range; the roofline dashed."""
    colours = _colours(cells)
    scale, unit = SCALES.get(cells[0].unit, (1.0, cells[0].unit))
    places = sorted({c.x for c in cells if c.x is not None})

    def draw(axes: Any) -> None:
        for subject, colour in colours.items():
            mine = sorted((c for c in cells if c.subject == subject), key=lambda c: c.x or 0)
            x = [c.x for c in mine]
            axes.plot(x, [scale * c.summary.p50 for c in mine], "o-", color=colour, label=subject)
            least, most = (
                [scale * end for end in ends] for ends in zip(*((min(c.samples), max(c.samples)) for c in mine))
            )
            axes.fill_between(x, least, most, color=colour, alpha=0.2)
            bound = [(c.x, scale * c.limit) for c in mine if c.limit is not None]
            if bound:
                axes.plot(*zip(*bound), "--", color=LIMIT, label=f"limit ({subject})")
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [format_place(x) for x in places])
        axes.minorticks_off()
        if min(min(c.samples) for c in cells) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"{cells[0].stage} ({unit})")
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
