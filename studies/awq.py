"""Activation-aware scaling before quantisation (AWQ: Lin et al. 2023, arXiv 2306.00978).

An input channel that is strong deserves finer steps: its weights are multiplied by s, and whatever produces the
channel is divided by s, so that the float model stays what it is. The exponent in s = E[|x|]^a is searched per layer by
the quantised layer's output error. Done as a view of the checkpoint, so every quantiser and graph gets it for free:

    q, k, v      <- input_layernorm          gate, up <- post_attention_layernorm
    down_proj    <- rows of up_proj          o_proj   <- rows of v_proj (and its bias), tied over the heads of a group
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.quantize.calibration import LayerStats
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme, dequantize
from gog_edge.export.quantize.weights import quantize
from gog_edge.families.weights import tensor_classes

F32 = NDArray[np.float32]
_GRID = tuple(i / 10 for i in range(10))  # exponents that are tried; 0 leaves the layer alone


@dataclass
class Scaling:
    """Factors by tensor name: `columns` [in] and `rows` [out] multiply a weight's axes (a vector has rows only)."""

    columns: dict[str, F32] = field(default_factory=dict)
    rows: dict[str, F32] = field(default_factory=dict)
    exponents: dict[str, float] = field(default_factory=dict)  # what was chosen, for the report

    def stats(self, name: str, known: LayerStats | None) -> LayerStats | None:
        """Statistics of the scaled layer's inputs, which are divided by its columns' factors."""
        columns = self.columns.get(name)
        return known if known is None or columns is None else _divided(known, columns)

    def apply(self, name: str, values: F32, start: int = 0) -> F32:
        """Rows of tensor `name` from row `start` on, scaled."""
        rows, columns = self.rows.get(name), self.columns.get(name)
        if rows is not None:
            part = rows[start : start + len(values)]
            values = values * (part if values.ndim == 1 else part[:, None])
        return values if columns is None else values * columns


class ScaledCheckpoint:
    """A checkpoint under a scaling; the exporter's `TensorSource`."""

    def __init__(self, checkpoint: Checkpoint, scaling: Scaling) -> None:
        self._checkpoint, self._scaling = checkpoint, scaling

    def names(self) -> set[str]:
        return self._checkpoint.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(name)

    def read(self, name: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        return self._scaling.apply(name, self._checkpoint.read(name)).astype(dtype, copy=False)

    def read_rows(self, name: str, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        return self._scaling.apply(name, self._checkpoint.read_rows(name, start, stop), start).astype(dtype, copy=False)


def find_scaling(
    checkpoint: Checkpoint,
    stats: Callable[[str], LayerStats | None],
    recipe: Recipe,
    layers: int,
    group: int,
    head_dim: int,
) -> Scaling:
    """Search the decoder's layers one by one.

    Args:
        group: query heads per KV head; o_proj's channels are tied over them, as one v channel feeds them all.
    """
    scaling, classes = Scaling(), tensor_classes(checkpoint.config)

    def search(weights: list[str], producers: list[str], tie: _HeadTie | None = None) -> None:
        schemes = {name: recipe.scheme(classes[name], name) for name in weights}
        _search(checkpoint, stats, schemes, scaling, producers, tie)

    for i in range(layers):
        layer = f"model.language_model.layers.{i}."
        attention = [f"{layer}self_attn.{p}_proj.weight" for p in "qkv"]
        search(attention, [f"{layer}input_layernorm.weight"])
        value, bias = f"{layer}self_attn.v_proj.weight", f"{layer}self_attn.v_proj.bias"
        producers = [value, bias] if bias in checkpoint.names() else [value]
        tie = _HeadTie(group, head_dim)
        search([f"{layer}self_attn.o_proj.weight"], producers, tie)
        inner = [f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"]
        search(inner, [f"{layer}post_attention_layernorm.weight"])
        search([f"{layer}mlp.down_proj.weight"], [inner[1]])
    return scaling


@dataclass(frozen=True)
class _HeadTie:
    """o_proj's inputs are query heads [heads, hd]; `group` of them share one KV head [kv, hd]."""

    group: int
    head_dim: int

    def narrow(self, wide: F32) -> F32:
        """[heads * hd] -> [kv * hd]: the mean over a group."""
        mean: F32 = wide.reshape(-1, self.group, self.head_dim).mean(axis=1).reshape(-1)
        return mean

    def widen(self, narrow: F32) -> F32:
        """[kv * hd] -> [heads * hd]."""
        return np.repeat(narrow.reshape(-1, 1, self.head_dim), self.group, axis=1).reshape(-1)


def _search(
    checkpoint: Checkpoint,
    stats: Callable[[str], LayerStats | None],
    schemes: dict[str, Scheme],
    scaling: Scaling,
    producers: list[str],
    tie: _HeadTie | None,
) -> None:
    weights = list(schemes)
    known = stats(weights[0])
    if known is None:
        return
    matrices = [scaling.apply(name, checkpoint.read(name)) for name in weights]
    strength = known.mean_abs if tie is None else tie.narrow(known.mean_abs)
    best: F32 | None = None
    best_error, best_exponent = np.inf, 0.0
    for exponent in _GRID:
        floor = np.float32(1e-4) * strength.max() + np.float32(1e-12)
        narrow = _normalised(np.power(np.maximum(strength, floor), np.float32(exponent)))
        wide = narrow if tie is None else tie.widen(narrow)
        error = 0.0
        for name, matrix in zip(weights, matrices):
            difference = dequantize(quantize(matrix * wide, schemes[name], _divided(known, wide))) / wide - matrix
            error += float(np.einsum("oi,ij,oj->", difference, known.hessian, difference, optimize=True))
        if error < best_error:
            best, best_error, best_exponent = narrow, error, exponent
    if best is None or best_exponent == 0:
        return
    wide = best if tie is None else tie.widen(best)
    for name in weights:
        scaling.columns[name] = _product(wide, scaling.columns.get(name))
        scaling.exponents[name] = best_exponent
    for name in producers:
        scaling.rows[name] = _product(_inverse(best), scaling.rows.get(name))


def _inverse(a: F32) -> F32:
    return np.reciprocal(a, dtype=np.float32)


def _product(a: F32, b: F32 | None) -> F32:
    return a if b is None else a * b


def _divided(known: LayerStats, columns: F32) -> LayerStats:
    inverse = _inverse(columns)
    return LayerStats(
        known.mean_square * inverse**2,
        known.mean_abs * inverse,
        known.hessian * inverse[:, None] * inverse,
        known.count,
    )


def _normalised(scale: F32) -> F32:
    """Geometric middle of the range at 1, so that neither side runs out of float16."""
    middle = np.sqrt(scale.max() * scale.min())
    result: F32 = (scale / middle).astype(np.float32)
    return result
