"""Weight quantisation: which scheme a tensor gets (`Recipe`) and round-to-nearest quantisation by it.

A weight is [out, in]; scales and zero points belong to one output row and one block of `block` inputs (the last
block may be shorter). Everywhere: value = (q - zero) * scale with SIGNED q in [-2^(b-1), 2^(b-1) - 1]; operators that
store unsigned fields add 2^(b-1) to q and zero alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["rtn", "mse", "hqq", "grid", "gptq"]
METHODS: tuple[Method, ...] = ("rtn", "mse", "hqq", "grid", "gptq")
TensorClass = Literal["embedding", "head", "attention", "mlp", "down_proj", "vision", "merger"]
CALIBRATED: frozenset[Method] = frozenset({"gptq"})
_ROWS_BYTES = 1 << 26  # float32 bytes quantised at once: bounds the temporaries


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored.

    `bits`: 4 or 8 (integers), 16 or 32 (floats; the other fields are unused).
    `block`: inputs that share a scale; 0 means the whole row (per channel).
    `symmetric`: no zero points.
    `scale_dtype`: scales are rounded to what the graph will hold before q is chosen.
    """

    bits: Literal[4, 8, 16, 32]
    block: int = 0
    symmetric: bool = True
    method: Method = "rtn"
    scale_dtype: Literal["float32", "float16"] = "float32"
    positive: bool = False  # TensorRT refuses negative scales

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16, 32):
            raise ValueError(f"{self.bits} bits are not supported: 4, 8, 16 or 32")
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown: {', '.join(METHODS)}")
        if self.block < 0 or (self.block and self.block % 16):
            raise ValueError(f"a block of {self.block} inputs is not supported: a multiple of 16, or 0 for the row")

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
        return min(self.block, inputs) if self.block else inputs

    def blocks(self, inputs: int) -> int:
        """Blocks in a row of `inputs`."""
        return -(-inputs // self.width(inputs))


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantised weight, unpacked.

    `q`: int8 [out, in] (4 and 8 bits), or the float16 / float32 weight itself.
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


def quantize(weight: NDArray[np.float32], scheme: Scheme, stats: Any = None) -> QuantizedWeight:
    """Quantise one weight [out, in].

    `stats`: calibration of this tensor (`gog_edge.export.quantize.calibration.LayerStats`); method "gptq" needs it.

    Raises:
        ValueError: not a matrix, not finite, or the method needs calibration that is missing.
    """
    if weight.ndim != 2 or not weight.size:
        raise ValueError(f"a weight to quantise must be a matrix, this one has shape {list(weight.shape)}")
    rows = weight.shape[0]
    return quantize_rows(lambda start, stop: weight[start:stop], (rows, weight.shape[1]), scheme, stats)


def quantize_rows(
    read: Callable[[int, int], NDArray[np.float32]],
    shape: tuple[int, int],
    scheme: Scheme,
    stats: Any = None,
) -> QuantizedWeight:
    """Quantise a weight that is read in row ranges (`checkpoint.read_rows`): only a slice is ever in float32.

    Rows are independent in every method, so the result is that of `quantize` on the whole weight.
    """
    out, inputs = shape
    step = max(1, _ROWS_BYTES // (4 * inputs))
    dtype: Any = {16: np.float16, 32: np.float32}.get(scheme.bits, np.int8)
    q = np.empty((out, inputs), dtype)
    blocks = scheme.blocks(inputs)
    scales = None if scheme.is_float else np.empty((out, blocks), np.float32)
    zeros = None if scheme.is_float or scheme.symmetric else np.empty((out, blocks), np.int8)
    run = _method(scheme, stats)
    for start in range(0, out, step):
        stop = min(out, start + step)
        weight = np.ascontiguousarray(read(start, stop), np.float32)
        if not np.isfinite(weight.sum(dtype=np.float64)):
            raise ValueError("a weight to quantise holds NaN or infinity")
        if scheme.is_float:
            with np.errstate(over="ignore"):
                q[start:stop] = weight
            continue
        part, scale, zero = run(weight, scheme)
        q[start:stop] = part
        if scales is not None:
            scales[start:stop] = scale
        if zeros is not None and zero is not None:
            zeros[start:stop] = zero
    if scheme.bits == 16 and not np.isfinite(q).all():
        raise ValueError("a weight has values beyond the range of float16; use another precision")
    return QuantizedWeight(q, scales, zeros, scheme.width(inputs), scheme)


def dequantize(weight: QuantizedWeight) -> NDArray[np.float32]:
    """The float32 weight [out, in] that the quantised one stands for."""
    if weight.scales is None:
        return weight.q.astype(np.float32)
    index = np.arange(weight.shape[1]) // weight.block
    values = weight.q.astype(np.float32)
    if weight.zero_points is not None:
        values -= weight.zero_points.astype(np.float32)[:, index]
    values *= weight.scales[:, index]
    return values


Parts = tuple[NDArray[np.int8], NDArray[np.float32], "NDArray[np.int8] | None"]


def _method(scheme: Scheme, stats: Any) -> Callable[[NDArray[np.float32], Scheme], Parts]:
    """The function that quantises rows; the searching ones are imported when they are asked for."""
    if scheme.is_float or scheme.method == "rtn":
        return round_to_nearest
    if scheme.method == "gptq":
        from gog_edge.export.quantize.gptq import compensate

        if stats is None:
            raise ValueError("method gptq needs calibration: none was given for this weight")
        order, upper = stats.factor
        return lambda weight, scheme: compensate(weight, scheme, order, upper, stats.mean_square)
    from gog_edge.export.quantize.search import search_hqq, search_mse

    return search_hqq if scheme.method == "hqq" else search_mse


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


_F32, _F16 = Scheme(32), Scheme(16)


@dataclass(frozen=True)
class Recipe:
    """Scheme of every tensor class. The classes:

    `embedding`: the token table (one row a token, always per row); `head`: lm_head; `attention`: q, k, v, o;
    `mlp`: gate and up; `down_proj`: down; `vision`: linear layers of the vision blocks; `merger`: the merger and the
    DeepStack mergers. Patch embedding, norms, biases and the position table are always float.
    """

    name: str
    embedding: Scheme
    head: Scheme
    attention: Scheme
    mlp: Scheme
    down_proj: Scheme
    vision: Scheme
    merger: Scheme
    overrides: dict[str, Scheme] = field(default_factory=dict)  # exact weight name -> scheme

    def scheme(self, tensor_class: TensorClass, name: str = "") -> Scheme:
        """The scheme of one tensor: its override, or its class's."""
        found: Scheme = self.overrides.get(name) or getattr(self, tensor_class)
        return found

    def with_method(self, method: Method) -> Recipe:
        """The same recipe with another method for the decoder's layers (where calibration can be had)."""
        return replace(
            self,
            name=f"{self.name.partition('-')[0]}-{method}",
            attention=replace(self.attention, method=method),
            mlp=replace(self.mlp, method=method),
            down_proj=replace(self.down_proj, method=method),
        )

    def at_int8(self, classes: Sequence[TensorClass]) -> Recipe:
        """The same recipe with these classes as the int8 recipe has them."""
        if not classes:
            return self
        eight = Recipe.for_precision("int8")
        changed: dict[str, Any] = {name: getattr(eight, name) for name in classes}
        return replace(self, name="-".join((self.name, *(f"{name}8" for name in classes))), **changed)

    @property
    def repeatable(self) -> bool:
        """Whether weights alone decide, so that the same recipe gives the same result again (no calibration)."""
        schemes = [getattr(self, f.name) for f in fields(self) if f.name not in ("name", "overrides")]
        return all(s.is_float or s.method not in CALIBRATED for s in (*schemes, *self.overrides.values()))

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def for_precision(cls, precision: str, method: Method | None = None) -> Recipe:
        """The default recipe of fp32, fp16, int8 or int4 (the figures behind it: docs/quantization.md).

        `method`: of every integer scheme; "gptq" for the decoder's layers only, the others are searched. None: mse,
        but for attention at 4 bits, whose few large weights must not be clipped: rtn.

        Raises:
            ValueError: another precision.
        """
        if precision == "fp32":
            return cls("fp32", _F32, _F32, _F32, _F32, _F32, _F32, _F32)
        if precision == "fp16":
            return cls("fp16", _F16, _F16, _F16, _F16, _F16, _F16, _F16)
        everywhere: Method = "mse" if method is None or method in CALIBRATED else method
        row, int8 = Scheme(8, method=everywhere), Scheme(8, 32, method=everywhere)
        if precision == "int8":
            recipe = cls("int8", row, int8, int8, int8, int8, int8, int8)
        elif precision == "int4":
            int4 = Scheme(4, 32, method=everywhere)
            attention = int4 if method else replace(int4, method="rtn")
            recipe = cls("int4", row, int8, attention, int4, int4, int8, int8)
        else:
            raise ValueError(f"unknown precision {precision!r}: fp32, fp16, int8 or int4")
        return recipe.with_method(method) if method is not None and method in CALIBRATED else recipe

    @classmethod
    def requantising(cls, precision: str) -> Recipe:
        """The recipe for checkpoints that were quantised before (AWQ, GPTQ): int4 keeps the steps they lie on.

        Raises:
            ValueError: another precision.
        """
        recipe = cls.for_precision(precision)
        if precision != "int4":
            return recipe
        steps = replace(recipe.mlp, symmetric=False, method="grid")
        return replace(recipe, name="int4-grid", attention=steps, mlp=steps, down_proj=steps)
