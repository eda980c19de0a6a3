"""Which policy fits a deadline on this machine: the published shapes compared with the measured roofline."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from gog_edge.bench.machine.roofline import Roofline, measure
from gog_edge.bench.report.terminal import format_value
from gog_edge.runtime.memory_plan import BITS, kv_bytes_per_token
from gog_edge.shapes import MERGE, SHAPES, PolicyShape

EFFICIENCY = 0.7  # share of the roofline that a whole question is assumed to reach
GLANCES = (128, 256, 512, 768, 1024, 2048)  # image tokens of a glance; a gaze gets a fifth of it, at least 64


def seconds(shape: PolicyShape, precision: str, roofline: Roofline, glance: int, words: int, tokens: int) -> float:
    """One question: a glance, one gaze, `words` read, `tokens` written, at `EFFICIENCY` of the roofline."""
    gaze = max(64, glance // 5)
    best = max(roofline.gemm, key=lambda name: roofline.gemm[name])
    patches = MERGE**2 * (glance + gaze)
    attention = 4.0 * shape.vision_depth * shape.vision_hidden * 16 * (glance**2 + gaze**2)
    encode = roofline.seconds(flops=2.0 * shape.vision_parameters * patches + attention, precision=best)
    read = glance + gaze + words
    prefill = roofline.seconds(flops=2.0 * shape.decoder_parameters * read, precision=best)
    weights = (shape.decoder_parameters * BITS[precision][0] + shape.vocabulary_parameters * BITS[precision][1]) / 8
    step = roofline.seconds(read_bytes=weights + read * kv_bytes_per_token(shape) + 2 * shape.state_bytes)
    return (encode + prefill + tokens * step) / EFFICIENCY


def table(deadline: float, words: int, tokens: int, roofline: Roofline | None = None) -> Table:
    """The largest glance that fits, by policy and precision."""
    limits = roofline or measure()
    out = Table(
        title=f"largest glance within {deadline:g} s, computed from this machine's measured limits at {EFFICIENCY:.0%}",
        title_justify="left",
        box=None,
    )
    for name in ("policy", "precision", "glance", "gaze", "estimate"):
        out.add_column(name, justify="left" if name in ("policy", "precision") else "right")
    for shape in SHAPES.values():
        for precision in ("int4", "int8"):
            fitting = [g for g in GLANCES if seconds(shape, precision, limits, g, words, tokens) <= deadline]
            best = max(fitting, default=None)
            least = seconds(shape, precision, limits, best or GLANCES[0], words, tokens)
            size = f"{best} tokens" if best else Text("none", "red")
            gaze = f"{max(64, best // 5)} tokens" if best else ""
            out.add_row(shape.name, precision, size, gaze, format_value(least, "s"))
    return out
