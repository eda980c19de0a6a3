"""Which image fits a deadline: a policy's arithmetic and weights compared with the roofline of a machine or a board.

A policy is a published shape at a precision, or a bundle. Of a bundle the bytes are its files' own; its parameters are
those bytes by the precision's bits a weight, so scales and norms count as parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from gog_edge import families
from gog_edge.bench.machine.limits import weight_bytes
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.report.terminal import format_value
from gog_edge.bundle import Bundle
from gog_edge.runtime.memory_plan import BITS, kv_bytes_per_token
from gog_edge.shapes import MERGE, SHAPES, PolicyShape

EFFICIENCY = 0.7  # share of the roofline that a whole question is assumed to reach
GLANCES = (128, 256, 512, 768, 1024, 2048)  # image tokens of a glance; a gaze gets a fifth of it, at least 64

Cached = Literal["nothing", "features", "prompt"]
"""What is there of the glance: nothing, its features (it is only read), or its keys and values as well."""

# GPUs by NVIDIA's data sheets: 10^9 bytes and 10^9 dense float16 operations a second. The sheets give sparse int8 for
# Orin (the GPU alone: 67, 60, 108 and 170 10^12 a second) and sparse float4 for Thor (2070); dense float16 is a quarter
# of the one and an eighth of the other. None of it was measured.
BOARDS = {
    "orin-nano-8gb": Roofline(0, 102.0, {"fp16": 16_700.0}),
    "orin-nx-16gb": Roofline(0, 102.4, {"fp16": 15_000.0}),
    "agx-orin-32gb": Roofline(0, 204.8, {"fp16": 27_000.0}),
    "agx-orin-64gb": Roofline(0, 204.8, {"fp16": 42_500.0}),
    "thor-128gb": Roofline(0, 273.0, {"fp16": 258_000.0}),
}


@dataclass(frozen=True)
class Policy:
    """What a question costs.

    Args:
        decoder, vision: parameters that every token, every patch of an image, is multiplied with.
        vision_width: layers times hidden size of the tower, for its attention.
        step_bytes: of the weights that a decoding step reads.
        kv_bytes: of the keys and values of one token.
        state_bytes: of the recurrent states, which a step reads and writes.
    """

    name: str
    precision: str
    decoder: float
    vision: float
    vision_width: int
    step_bytes: float
    kv_bytes: float
    state_bytes: float = 0.0


def published(shape: PolicyShape, precision: str) -> Policy:
    """A published shape; its cache has 16 bits."""
    linear, head, _ = BITS[precision]
    weights = (shape.active_parameters * linear + shape.vocabulary_parameters * head) / 8
    width = shape.vision_depth * shape.vision_hidden
    kv = kv_bytes_per_token(shape)
    decoder, vision = shape.active_parameters, shape.vision_parameters
    return Policy(shape.name, precision, decoder, vision, width, weights, kv, shape.state_bytes)


def bundled(bundle: Bundle) -> Policy:
    """An exported policy."""
    m = bundle.manifest
    linear, head, tower = BITS[m.precision]
    # The head is in the decoder's file; rows of the embedding are gathered on the host.
    decoder, vision = (weight_bytes(bundle, graph, tokens=1) for graph in ("decoder", "vision"))
    vocabulary = m.decoder.vocab * m.decoder.hidden * head / 8
    width = m.vision.depth * m.vision.hidden
    parameters = max(decoder - vocabulary, 0.0) * 8 / linear
    caches = families.named(m.family).cache_bytes(m.decoder)
    return Policy(m.name, m.precision, parameters, vision * 8 / tower, width, decoder, *caches)


def seconds(policy: Policy, roofline: Roofline, glance: int, words: int, tokens: int, cached: Cached) -> float:
    """One question: a glance, one gaze, `words` read, `tokens` written, at `EFFICIENCY` of the roofline."""
    gaze = max(64, glance // 5)
    best = max(roofline.gemm, key=lambda name: roofline.gemm[name])
    encoded = [gaze] if cached != "nothing" else [gaze, glance]
    attention = 4.0 * policy.vision_width * 16 * sum(n**2 for n in encoded)
    patches = MERGE**2 * sum(encoded)
    encode = roofline.seconds(flops=2.0 * policy.vision * patches + attention, precision=best)
    read = gaze + words + (0 if cached == "prompt" else glance)
    prefill = roofline.seconds(flops=2.0 * policy.decoder * read, precision=best)
    context = glance + gaze + words
    step = roofline.seconds(read_bytes=policy.step_bytes + context * policy.kv_bytes + 2 * policy.state_bytes)
    return (encode + prefill + tokens * step) / EFFICIENCY


def policies(bundle: Bundle | None = None) -> list[Policy]:
    """The bundle's, or every published shape in int4 and int8."""
    if bundle is not None:
        return [bundled(bundle)]
    return [published(shape, precision) for shape in SHAPES.values() for precision in ("int4", "int8")]


def table(
    rows: Sequence[Policy], roofline: Roofline, deadline: float, words: int, tokens: int, cached: Cached, whose: str
) -> Table:
    """The largest glance that fits, by policy and precision. `whose`: limits, for the title."""
    known = "" if cached == "nothing" else f", {cached} of the glance cached"
    out = Table(
        title=f"largest glance within {deadline:g} s, computed from {whose} at {EFFICIENCY:.0%}{known}",
        title_justify="left",
        box=None,
    )
    for name in ("policy", "precision", "glance", "gaze", "estimate"):
        out.add_column(name, justify="left" if name in ("policy", "precision") else "right")
    for policy in rows:
        fitting = [g for g in GLANCES if seconds(policy, roofline, g, words, tokens, cached) <= deadline]
        best = max(fitting, default=None)
        least = seconds(policy, roofline, best or GLANCES[0], words, tokens, cached)
        size = f"{best} tokens" if best else Text("none", "red")
        gaze = f"{max(64, best // 5)} tokens" if best else ""
        out.add_row(policy.name, policy.precision, size, gaze, format_value(least, "s"))
    return out
