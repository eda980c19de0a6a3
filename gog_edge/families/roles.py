"""Which weight plays which role, told by the graphs: a target that computes nothing watches them being built.

So what recipes, calibration and gates go by can't differ from what is exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from gog_edge import families
from gog_edge.families.target import Role, Target, TensorClass, Value

_VALUE = Value("")


@dataclass(frozen=True)
class _Named:
    """A matrix that nobody reads."""

    names: tuple[str, ...]
    rows: int
    columns: int


@dataclass
class Watched:
    """What a graph is made of. `matrices`: (names that share one input, role), in order; `values`: of all weights that
    a target tells the progress of."""

    matrices: list[tuple[tuple[str, ...], Role]] = field(default_factory=list)
    values: int = 0


def watch(build: Callable[[Target], None]) -> Watched:
    """Build a graph on nothing."""
    target = _Watching()
    build(cast(Target, target))
    return target.seen


def tensor_classes(config: dict[str, Any]) -> dict[str, TensorClass]:
    """Tensor class of every weight that a recipe has a scheme for, by name; all others stay float.

    Raises:
        CheckpointError: config.json is of no known family, or wrong.
    """
    family = families.find(config)
    dims = family.parse(config)
    vision = watch(lambda t: family.build_vision(t, dims.vision))
    found: dict[str, TensorClass] = {}
    for names, role in (*vision.matrices, *_decoder(config).matrices):
        if role != "patch_embed":
            found |= dict.fromkeys(names, role)
    return found | {family.head: "head", family.embedding: "embedding"}


def decoder_inputs(config: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Names of the decoder layers' matrices, those that read the same input together. Raises as `tensor_classes`."""
    return tuple(names for names, role in _decoder(config).matrices if role != "head")


def _decoder(config: dict[str, Any]) -> Watched:
    family = families.find(config)
    dims = family.parse(config).decoder
    return watch(lambda t: family.build_decoder(t, dims, family.caches(dims.spec)))


class _Watching:
    """A `Target`; whatever it does not watch gives an empty value."""

    def __init__(self) -> None:
        self.seen = Watched()

    def matrix(self, names: tuple[str, ...], rows: int, columns: int) -> _Named:
        return _Named(names, rows, columns)

    def folded_patches(self, name: str, rows: int, temporal: int, patch: int) -> _Named:
        return _Named((name,), rows, 3 * patch**2)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        self.seen.values += math.prod(shape)
        return _VALUE

    def linear(self, x: Value, weight: _Named, biases: tuple[str, ...], *, role: Role) -> Value:
        self.seen.matrices.append((weight.names, role))
        self.seen.values += weight.rows * weight.columns
        return _VALUE

    gated_linear = linear

    def add_rms_norm(self, *_: Any) -> tuple[Value, Value]:
        return _VALUE, _VALUE

    add_layer_norm = add_rms_norm

    def scope(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def __getattr__(self, name: str) -> Callable[..., Value]:
        return lambda *_, **__: _VALUE

    def cache(self, *_: Any) -> _Watching:
        return self  # its `finish` is one of the things that are not watched
