"""How one weight is stored as integers, and round-to-nearest quantisation by it.

A weight is [out, in]; scales and zero points belong to one output row and one block of `block` inputs (the last
block may be shorter). Rows may be turned first (`rotation`). Everywhere: value = (q - zero) * scale with SIGNED q in
[-2^(b-1), 2^(b-1) - 1]; operators that store unsigned fields add 2^(b-1) to q and zero alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gog_edge.native.rotation import LEAST, rotate_back, rotation_block

Method = Literal["rtn", "mse", "hqq", "grid", "gptq"]
METHODS: tuple[Method, ...] = ("rtn", "mse", "hqq", "grid", "gptq")
CALIBRATED: frozenset[Method] = frozenset({"gptq"})


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored.

    `bits`: 4, 5 or 8 (integers), 16 or 32 (floats; the other fields are unused).
    `block`: inputs that share a scale; 0 means the whole row (per channel).
    `symmetric`: no zero points.
    `scale_dtype`: scales are rounded to what the graph will hold before q is chosen.
    `even`: blocks are cut alike, as few as `block` allows, in multiples of 16; else all but the last one have `block`.
    `rotation`: q stands for the rows turned by `gog_edge.native.rotation`, in blocks of up to so many inputs; 0: plain.
    """

    bits: Literal[4, 5, 8, 16, 32]
    block: int = 0
    symmetric: bool = True
    method: Method = "rtn"
    scale_dtype: Literal["float32", "float16"] = "float32"
    positive: bool = False  # TensorRT refuses negative scales
    even: bool = False
    rotation: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 5, 8, 16, 32):
            raise ValueError(f"{self.bits} bits are not supported: 4, 5, 8, 16 or 32")
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown: {', '.join(METHODS)}")
        if self.block < 0 or (self.block and self.block % 16):
            raise ValueError(f"a block of {self.block} inputs is not supported: a multiple of 16, or 0 for the row")
        if self.rotation and (self.rotation < LEAST or self.rotation & (self.rotation - 1)):
            raise ValueError(f"a rotation of {self.rotation} inputs is not supported: a power of two from {LEAST} on")

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def low(self) -> int:
        """Smallest q."""
        return int(-(2 ** (self.bits - 1)))

    @property
    def high(self) -> int:
        """Largest q."""
        return int(2 ** (self.bits - 1) - 1)

    def width(self, inputs: int) -> int:
        """Inputs in one block of a row of `inputs`."""
        if not self.block or self.block >= inputs:
            return inputs
        if not self.even:
            return self.block
        blocks = -(-inputs // self.block)
        return -(-inputs // (16 * blocks)) * 16

    def blocks(self, inputs: int) -> int:
        """Blocks in a row of `inputs`."""
        return -(-inputs // self.width(inputs))

    def turned(self, inputs: int) -> int:
        """Inputs of a row of `inputs` that are turned together (`rotation.rotate`); 0: none."""
        return rotation_block(inputs, self.rotation)


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantised weight, unpacked.

    `q`: int8 [out, in] (4, 5 and 8 bits), or the float16 / float32 weight itself.
    `scales`: float32 [out, blocks], already rounded to the scheme's scale_dtype; None for float schemes.
    `zero_points`: int8 [out, blocks] in the same signed range as q; None when symmetric.
    `block`: inputs a block (the row's length when per channel).
    """

    q: NDArray[Any]
    scales: NDArray[np.float32] | None
    zero_points: NDArray[np.int8] | None
    block: int
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes when packed: q at its bits, scales, and zero points at the same bits as q."""
        if self.scales is None:
            return self.q.nbytes
        itemsize = np.dtype(self.scheme.scale_dtype).itemsize
        zeros = 0 if self.zero_points is None else self.zero_points.size * self.scheme.bits // 8
        return self.q.size * self.scheme.bits // 8 + self.scales.size * itemsize + zeros


def dequantize(weight: QuantizedWeight) -> NDArray[np.float32]:
    """The float32 weight [out, in] that the quantised one stands for."""
    if weight.scales is None:
        return weight.q.astype(np.float32)
    index = np.arange(weight.shape[1]) // weight.block
    values = weight.q.astype(np.float32)
    if weight.zero_points is not None:
        values -= weight.zero_points.astype(np.float32)[:, index]
    values *= weight.scales[:, index]
    turned = weight.scheme.turned(weight.shape[1])
    return rotate_back(values, turned) if turned else values


Parts = tuple[NDArray[np.int8], NDArray[np.float32], "NDArray[np.int8] | None"]


def round_to_nearest(weight: NDArray[np.float32], scheme: Scheme) -> Parts:
    """RTN: the scale that just covers each block, each value to its nearest step."""
    blocks = to_blocks(weight, scheme)
    scale, zero = cover(blocks, scheme)
    q = encode(blocks, scale, zero, scheme)
    return from_blocks(q, weight.shape[1]), scale, zero


def to_blocks(weight: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """[out, in] as [out, blocks, width]; a short last block repeats its last value (it changes no min or max)."""
    out, inputs = weight.shape
    width, count = scheme.width(inputs), scheme.blocks(inputs)
    missing = width * count - inputs
    if missing:
        weight = np.concatenate([weight, np.repeat(weight[:, -1:], missing, axis=1)], axis=1)
    return weight.reshape(out, count, width)


def from_blocks(q: NDArray[np.int8], inputs: int) -> NDArray[np.int8]:
    """[out, blocks, width] as [out, inputs], without the padding of the last block."""
    return q.reshape(q.shape[0], -1)[:, :inputs]


def cover(blocks: NDArray[np.float32], scheme: Scheme) -> tuple[NDArray[np.float32], NDArray[np.int8] | None]:
    """Scale and zero point [out, blocks] whose range just covers each block.

    Symmetric: q uses the whole signed range, -2^(b-1) included: the sign of the scale is chosen so that the value of
    largest magnitude lands on it (4 bits have 16 levels, and this uses them all). 8 bits stay in [-127, 127]. With
    `positive` scales 4 bits split the difference: the largest value is off by half a step at most.
    """
    if scheme.symmetric:
        if scheme.bits == 8:
            return rounded_scale(np.abs(blocks).max(axis=-1) / np.float32(127), scheme), None
        if scheme.positive:
            return rounded_scale(np.abs(blocks).max(axis=-1) / np.float32(scheme.high + 0.5), scheme), None
        low, high = blocks.min(axis=-1), blocks.max(axis=-1)
        return rounded_scale(np.where(high > -low, high, low) / np.float32(scheme.low), scheme), None
    low = np.minimum(blocks.min(axis=-1), 0)
    high = np.maximum(blocks.max(axis=-1), 0)
    scale = rounded_scale((high - low) / np.float32(scheme.high - scheme.low), scheme)
    return scale, zero_point(low, scale, scheme)


def zero_point(low: NDArray[np.float32], scale: NDArray[np.float32], scheme: Scheme) -> NDArray[np.int8]:
    """The integer that stands for 0.0 when `low` is to be the smallest value."""
    zero: NDArray[np.int8] = np.clip(np.rint(scheme.low - low / scale), scheme.low, scheme.high).astype(np.int8)
    return zero


def rounded_scale(scale: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """`scale` as the graph will hold it; never 0 (a block of zeros gets 1) and never lost to float16 underflow."""
    kept = scale.astype(scheme.scale_dtype).astype(np.float32)
    smallest = np.float32(np.finfo(scheme.scale_dtype).smallest_normal)
    tiny = np.abs(kept) < smallest
    fallback = np.where(scale == 0, np.float32(1), np.copysign(smallest, scale))
    return np.where(tiny, fallback, kept).astype(np.float32)


def encode(
    blocks: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.int8] | None,
    scheme: Scheme,
) -> NDArray[np.int8]:
    """The nearest q of every value."""
    steps = blocks / scale[..., None]
    np.rint(steps, out=steps)
    if zero is not None:
        steps += zero[..., None]
    low = -127 if scheme.symmetric and scheme.bits == 8 else scheme.low
    np.clip(steps, low, scheme.high, out=steps)
    return steps.astype(np.int8)
