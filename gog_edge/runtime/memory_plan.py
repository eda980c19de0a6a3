"""How much memory a policy needs on a device, and which context fits: the arithmetic behind `doctor --plan`.

Every figure is computed from the published shape of the policy; none is measured here. Weights: parameters times
bits per weight of the precision (4-bit blocks of 32 carry a float16 scale: 4.5 bits). KV cache: 2 * layers that
attend * KV heads * head size * bytes a token, and the states of those that do not, with the copies of them that
sessions keep. Activations: one image through the vision tower plus one prefill chunk; for TensorRT the working memory
of both engines, which is allocated at load for the largest sizes they were built for, from what the build logs of
TensorRT-RTX 1.7 say ("Total Activation Memory", `studies/engine_scratch.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gog_edge.errors import UsageError
from gog_edge.native.contract import CONV_REWIND, DELTA_SLOTS, delta_words
from gog_edge.runtime.snapshots import copies
from gog_edge.shapes import LINEAR_DIM, MERGE, SHAPES, PolicyShape

GIB = 1024**3
IMAGE_TOKENS = 768  # of the largest image: 0.79 megapixels of Qwen3-VL, 0.6 of Qwen2.5-VL
RUNTIME = GIB // 2  # interpreter, libraries, the engine's own allocations


# bits a weight: decoder linears, embedding rows and head, vision tower
BITS = {
    "int4": (4.5, 8.0, 8.0),
    "int5": (5.5, 8.0, 8.0),
    "int8": (8.0, 8.0, 8.0),
    "fp16": (16.0, 16.0, 16.0),
    "fp32": (32.0, 32.0, 32.0),
}


# What a board shares between system and GPU, in GiB, and what of it is left to a program without the desktop. Totals:
# NVIDIA's data sheets; the difference is our allowance for the system, not a measurement.
DEVICES = {
    "orin-nano-8gb": (8, 6.5),
    "orin-nx-16gb": (16, 13.5),
    "agx-orin-32gb": (32, 28.0),
    "agx-orin-64gb": (64, 58.0),
    "thor-128gb": (128, 120.0),
}
# Working memory of the engines that `gog-edge export` builds by default (4,096 tokens, chunks of 512, images of up to
# 16,384 patches), measured for one width of tower and decoder and taken to grow with it.
ENGINE_PATCHES = 16384
_TOWER_SCRATCH = {"qwen2_5_vl": (50_353, 1280), "qwen3_vl": (28_628, 1024)}  # bytes a patch, at this width
_TOWER_LEAST = 12 << 20
Engine = Literal["cpu", "tensorrt"]
USABLE = 1024  # tokens: a question with one small image; less than that is no context


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part for one policy, precision and context; `fits` against the memory that is free for it."""

    policy: str
    precision: str
    context: int
    weights: int
    kv_cache: int
    activations: int
    runtime: int
    available: int
    engine: Engine = "cpu"

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.runtime

    @property
    def fits(self) -> bool:
        return self.total <= self.available


def kv_bytes_per_token(shape: PolicyShape, kv_bytes: int = 2) -> int:
    """Keys and values of one token over all layers that attend."""
    return 2 * shape.attention_layers * shape.kv_heads * shape.head_dim * kv_bytes


def recurrent_bytes(shape: PolicyShape) -> int:
    """The states of a conversation and their copies, with native operators (others keep less)."""
    if shape.linear is None:
        return 0
    keys, values = shape.linear
    layers, channels = shape.layers - shape.attention_layers, (2 * keys + values) * LINEAR_DIM
    words = delta_words(keys, values, LINEAR_DIM, LINEAR_DIM)
    copy = 4 * layers * (words + 3 * channels)
    return 4 * layers * (DELTA_SLOTS * words + (3 + CONV_REWIND) * channels) + copies(copy) * copy


def plan(
    policy: str,
    precision: str,
    available: int,
    *,
    context: int = 4096,
    image_tokens: int = IMAGE_TOKENS,
    chunk: int = 512,
    kv_bytes: int = 2,
    runtime: int = RUNTIME,
    engine: Engine = "cpu",
) -> MemoryPlan:
    """The memory that `policy` needs.

    `available`: bytes free for the program. `image_tokens`: merged tokens of the largest image. `chunk`: prefill
    chunk in tokens. `runtime`: interpreter, libraries and the engine's own allocations. `engine`: "tensorrt" allocates
    working memory for its largest image and chunk at load, and the whole KV cache.

    Raises:
        UsageError: the policy or the precision is unknown.
    """
    if policy not in SHAPES:
        raise UsageError(f"unknown policy shape {policy!r}: one of {', '.join(SHAPES)}")
    if precision not in BITS:
        raise UsageError(f"unknown precision {precision!r}: one of {', '.join(BITS)}")
    shape = SHAPES[policy]
    linear, vocabulary, vision = BITS[precision]
    tables = 1 if shape.tied else 2
    bits = (
        shape.decoder_parameters * linear
        + tables * shape.vocabulary_parameters * vocabulary
        + shape.vision_parameters * vision
    )
    patches = MERGE**2 * image_tokens
    tower = patches * (4 * shape.vision_hidden + shape.vision_intermediate * (2 if shape.gated_vision else 1)) * 4
    prefill = chunk * ((3 + shape.top) * shape.hidden + 2 * (shape.top or 1) * shape.intermediate) * 4
    return MemoryPlan(
        policy=policy,
        precision=precision,
        context=context,
        weights=int(bits / 8),
        kv_cache=context * kv_bytes_per_token(shape, kv_bytes) + recurrent_bytes(shape),
        activations=(scratch(shape, context, chunk) if engine == "tensorrt" else max(tower, prefill))
        + image_tokens * shape.hidden * (1 + len(shape.taps)) * 4,
        runtime=runtime,
        available=available,
        engine=engine,
    )


def scratch(shape: PolicyShape, capacity: int, chunk: int = 512, patches: int = ENGINE_PATCHES) -> int:
    """Working memory of both TensorRT engines, which each allocates at load (`studies/engine_scratch.md`).

    Of the decoder: the MLP of a chunk, and for each token of the capacity either one layer's keys and values in another
    layout with a chunk's mask, or that mask for every query head of a KV head.
    """
    per_patch, width = _TOWER_SCRATCH[shape.family]
    tower = _TOWER_LEAST + patches * per_patch * shape.vision_hidden // width
    layer, mask = 2 * shape.kv_heads * shape.head_dim * 2, 2 * chunk
    cached = max(layer + mask, mask * shape.heads // shape.kv_heads)
    return tower + 11 * chunk * shape.intermediate + capacity * cached


def precisions(engine: Engine) -> tuple[str, ...]:
    """Those that an engine runs: 5 bits are for native operators only."""
    return tuple(name for name in BITS if engine == "cpu" or name != "int5")


def board_engine(policy: str) -> Engine:
    """What runs a policy on a Jetson: TensorRT where there are graphs for it, else the CPU."""
    return "tensorrt" if SHAPES[policy].family in _TOWER_SCRATCH else "cpu"


def largest_context(policy: str, precision: str, available: int, engine: Engine = "cpu") -> int:
    """The longest context that fits and that the checkpoint knows, in tokens, rounded down to 256; 0 when not even the
    weights fit."""
    empty = plan(policy, precision, available, context=0, engine=engine)
    if not empty.fits:
        return 0
    each = plan(policy, precision, available, context=1 << 20, engine=engine).total - empty.total
    tokens = (available - empty.total) * (1 << 20) // each
    return min(int(tokens), SHAPES[policy].context) // 256 * 256


def fitting(
    available: int, context: int, policies: Sequence[str], *, board: bool = False
) -> list[tuple[MemoryPlan, int]]:
    """(plan, longest context) of every policy and precision that fits, with `context` tokens or as many as there is
    room for, at least `USABLE`. `board`: on a Jetson (`board_engine`)."""
    rows = []
    for policy in policies:
        engine = board_engine(policy) if board else "cpu"
        for precision in precisions(engine):
            longest = largest_context(policy, precision, available, engine)
            if longest >= USABLE:
                made = plan(policy, precision, available, context=min(context, longest), engine=engine)
                rows.append((made, longest))
    return rows


def suggestion(rows: Sequence[tuple[MemoryPlan, int]], context: int) -> MemoryPlan | None:
    """The policy with most parameters that has room for `context`, at the highest precision it fits in."""
    full = [p for p, longest in rows if longest >= context]
    order = list(BITS)
    return max(full, key=lambda p: (SHAPES[p.policy].parameters, order.index(p.precision)), default=None)
