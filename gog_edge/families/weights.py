"""Which weights a family's graphs are made of, in which shape and role: told by the graphs themselves.

A target that computes nothing watches them being built, so what is checked before an export, what recipes, calibration
and gates go by, and what is exported can't differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from gog_edge import families
from gog_edge.families.base import Family, ModelConfig
from gog_edge.families.target import (
    DeltaInputs,
    DeltaWeights,
    LayerCache,
    RecurrentCache,
    Role,
    Target,
    TensorClass,
    Value,
    Weight,
    tensor_class,
    vector,
)
from gog_edge.manifest import DecoderSpec

Shape = tuple[int, ...]


@dataclass
class Watched:
    """What a graph is made of. `shapes`: of every tensor, by name. `matrices`: (names that read one input, role), in
    order; `stacks`: (name, role) of experts' matrices, many in one tensor. `values`: numbers in all matrices and tables
    that a target writes, one after the other. `orders`: of the matrices whose outputs are stored in another order than
    the checkpoint's, by the names in `matrices`."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    matrices: list[tuple[tuple[str, ...], Role]] = field(default_factory=list)
    stacks: list[tuple[str, Role]] = field(default_factory=list)
    values: int = 0
    orders: dict[tuple[str, ...], Shape] = field(default_factory=dict)


def watch(build: Callable[[Target], None]) -> Watched:
    """Build a graph on nothing."""
    target = _Watching()
    build(cast(Target, target))
    return target.seen


def shapes(family: Family, config: ModelConfig) -> dict[str, Shape]:
    """Shape of every tensor that an export reads."""
    spec = config.decoder.spec
    found: dict[str, Shape] = {family.embedding: (spec.vocab, spec.hidden)}
    for graph in (_vision(family, config), _decoder(family, config)):
        found |= graph.shapes
    return found


def tensor_classes(config: dict[str, Any]) -> dict[str, TensorClass]:
    """Tensor class of every weight that a recipe has a scheme for, by name; all others stay float.

    Raises:
        CheckpointError: config.json is of no known family, or wrong.
    """
    family = families.find(config)
    dims = family.parse(config)
    found: dict[str, TensorClass] = {}
    decoder = _decoder(family, dims)
    stacks = [((name,), role) for name, role in decoder.stacks]
    for names, role in (*_vision(family, dims).matrices, *decoder.matrices, *stacks):
        if (kind := tensor_class(role)) is not None:
            found |= dict.fromkeys(names, kind)
    return found | {family.head: "head", family.embedding: "embedding"}


def decoder_inputs(config: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Names of the decoder layers' matrices, those that read the same input together, without those of experts: each
    of them sees a few tokens only, too few to calibrate it. Raises as `tensor_classes`."""
    family = families.find(config)
    matrices = _decoder(family, family.parse(config)).matrices
    return tuple(names for names, role in matrices if role != "head" and tensor_class(role) is not None)


def decoder_matrices(config: dict[str, Any]) -> Watched:
    """What the decoder's graph is made of. Raises as `tensor_classes`."""
    family = families.find(config)
    return _decoder(family, family.parse(config))


def _vision(family: Family, config: ModelConfig) -> Watched:
    return watch(lambda t: family.build_vision(t, config.vision))


def _decoder(family: Family, config: ModelConfig) -> Watched:
    caches = family.caches(config.decoder.spec)
    return watch(lambda t: family.build_decoder(t, config.decoder, caches))


@dataclass(frozen=True)
class _Value:
    """A value of which only the size of the last axis is known (0 where even that is not)."""

    width: int = 0


@dataclass(frozen=True)
class _Matrix:
    """A matrix that nobody reads: the shape of each of its tensors, and how many outputs each has."""

    shapes: dict[str, Shape]
    rows: Shape
    columns: int


class _Watching:
    """A `Target`. What it does not define takes a value in and gives one of the same width back."""

    def __init__(self) -> None:
        self.seen = Watched()

    def __getattr__(self, name: str) -> Callable[..., _Value]:
        return lambda x, *_, **__: x

    def scope(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> _Value:
        last = shape[-1]
        return _Value(last if isinstance(last, int) else 0)

    def reshape(self, x: _Value, shape: Shape) -> _Value:
        return _Value(max(shape[-1], 0))

    def stack(self, parts: list[_Value]) -> _Value:
        return parts[0]

    def split(self, x: _Value, widths: Shape) -> list[_Value]:
        return [_Value(width) for width in widths]

    def matrix(self, names: tuple[str, ...], rows: Shape, columns: int, order: Shape = ()) -> _Matrix:
        if order:
            self.seen.orders[names] = order
        return _Matrix({name: (n, columns) for name, n in zip(names, rows)}, rows, columns)

    def folded_patches(self, name: str, rows: int, temporal: int, patch: int) -> _Matrix:
        return _Matrix({name: (rows, 3, temporal, patch, patch)}, (rows,), 3 * patch**2)

    def expert_stack(self, name: str, count: int, rows: int, columns: int) -> _Matrix:
        return _Matrix({name: (count, rows, columns)}, (count, rows), columns)

    def experts(self, x: _Value, router: _Matrix, gate_up: _Matrix, down: _Matrix, top: int) -> _Value:
        self.linear(x, router, (), role="router")
        for stack, role in ((gate_up, "mlp"), (down, "down_proj")):
            self.seen.stacks += [(name, cast(Role, role)) for name in stack.shapes]
            self.seen.shapes |= stack.shapes
            self.seen.values += math.prod(stack.rows) * stack.columns
        return _Value(down.rows[1])

    def parameter(self, name: str, shape: Shape) -> _Value:
        self.seen.shapes[name] = shape
        self.seen.values += math.prod(shape)
        return _Value(shape[-1])

    def linear(self, x: _Value, weight: _Matrix, biases: tuple[str, ...], *, role: Role) -> _Value:
        self.seen.matrices.append((tuple(weight.shapes), role))
        self.seen.shapes |= weight.shapes | {bias: (n,) for bias, n in zip(biases, weight.rows)}
        self.seen.values += sum(weight.rows) * weight.columns
        return _Value(sum(weight.rows))

    def gated_linear(self, x: _Value, weight: _Matrix, biases: tuple[str, ...], *, role: Role) -> _Value:
        return _Value(self.linear(x, weight, biases, role=role).width // 2)

    def rms_norm(self, x: _Value, weight: Weight, eps: float) -> _Value:
        self.seen.shapes[vector(weight).name] = (x.width,)
        return x

    def layer_norm(self, x: _Value, weight: str, bias: str, eps: float) -> _Value:
        self.seen.shapes |= {weight: (x.width,), bias: (x.width,)}
        return x

    def add_rms_norm(self, x: _Value, delta: _Value | None, weight: Weight, eps: float) -> tuple[_Value, _Value]:
        return self.rms_norm(x, weight, eps), x

    def add_layer_norm(
        self, x: _Value, delta: _Value | None, weight: str, bias: str, eps: float
    ) -> tuple[_Value, _Value]:
        return self.layer_norm(x, weight, bias, eps), x

    def vision_attention(self, qkv: _Value, *_: Any) -> _Value:
        return _Value(qkv.width // 3)

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> _Cache:
        return _Cache(spec, layers)

    def cached_attention(
        self,
        cache: _Cache,
        layer: int,
        qkv: _Value,
        cos: _Value,
        sin: _Value,
        norms: tuple[Weight, ...] | None,
        *_: Any,
    ) -> _Value:
        self.seen.shapes |= {vector(norm).name: (cache.spec.head_dim,) for norm in norms or ()}
        return _Value(cache.spec.heads * cache.spec.head_dim)

    def gated_delta(self, cache: _Cache, layer: int, inputs: DeltaInputs, weights: DeltaWeights, eps: float) -> Value:
        kind = cache.layers[layer]
        assert isinstance(kind, RecurrentCache)
        self.seen.shapes |= {
            weights.kernel: (kind.channels, 1, kind.kernel),
            weights.rate: (kind.heads,),
            weights.bias: (kind.heads,),
            weights.norm: (kind.value_dim,),
        }
        return inputs.gate


@dataclass(frozen=True)
class _Cache:
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]

    def finish(self) -> None: ...
