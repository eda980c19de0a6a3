"""The time line of a trace: one lane per stage, one bar per span, as SVG; and the sums as a table."""

from __future__ import annotations

import math

from gog_edge.runtime.telemetry import STAGES, Span, Trace
from gog_edge.sanitize import escape_html as escape

WIDTH, LABEL, LANE = 1100.0, 90.0, 20.0
_COLOURS = {
    "decode_image": "#adb5bd",
    "crop": "#f08c00",
    "encode": "#e8590c",
    "prefill": "#1971c2",
    "decode": "#0b7285",
    "grammar": "#66a80f",
    "search": "#6741d9",
    "wait": "#ced4da",
}


def timeline(trace: Trace) -> str:
    """Lanes in the order of `STAGES`; a bar's tool tip says what it was and how long it took."""
    if not trace.spans:
        return "<p class=soft>nothing was timed</p>"
    end = max(max(s.end for s in trace.spans), 1e-6)
    lanes = [s for s in (*STAGES, *sorted({s.stage for s in trace.spans} - set(STAGES))) if _of(trace, s)]
    scale = (WIDTH - LABEL) / end
    height = LANE * (len(lanes) + 1) + 6
    parts = [f'<svg class=timeline viewBox="0 0 {WIDTH:.0f} {height:.0f}">', *_axis(end, scale, LANE * len(lanes))]
    for row, lane in enumerate(lanes):
        y = row * LANE
        parts.append(f'<text x="0" y="{y + 14:.0f}">{escape(lane.replace("_", " "))}</text>')
        parts.extend(_bar(span, y, scale) for span in _of(trace, lane))
    return "".join([*parts, "</svg>"])


def stage_table(trace: Trace) -> str:
    """Milliseconds and number of spans of every stage."""
    rows = []
    for stage, seconds in sorted(trace.seconds_by_stage().items(), key=lambda item: -item[1]):
        count = len(_of(trace, stage))
        rows.append(f"<tr><td>{escape(stage)}<td class=number>{seconds * 1e3:,.1f} ms<td class=number>{count}")
    return f"<table><tr><th>stage<th>time<th>spans{''.join(rows)}</table>"


def _of(trace: Trace, stage: str) -> list[Span]:
    return [s for s in trace.spans if s.stage == stage]


def _bar(span: Span, y: float, scale: float) -> str:
    fields = ", ".join(f"{k} {v}" for k, v in span.fields.items())
    tip = f"{span.stage}, step {span.step + 1}: {span.seconds * 1e3:.1f} ms" + (f" ({fields})" if fields else "")
    colour = _COLOURS.get(span.stage, "#868e96")
    return (
        f'<rect x="{LABEL + span.start * scale:.2f}" y="{y + 3:.0f}" width="{max(span.seconds * scale, 0.8):.2f}" '
        f'height="{LANE - 6:.0f}" rx="2" fill="{colour}"><title>{escape(tip)}</title></rect>'
    )


def _axis(end: float, scale: float, bottom: float) -> list[str]:
    """Round ticks: 1, 2 or 5 times a power of ten, about eight of them."""
    raw = end / 8
    power = 10 ** math.floor(math.log10(raw))
    tick = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    parts = []
    for i in range(int(end / tick) + 1):
        x = LABEL + i * tick * scale
        label = f"{i * tick:.3g} s" if tick >= 0.1 else f"{i * tick * 1e3:.3g} ms"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.0f}"/>')
        parts.append(f'<text x="{x + 2:.1f}" y="{bottom + 14:.0f}">{label}</text>')
    return parts
