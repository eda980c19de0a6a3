"""Graph inputs and outputs of what layers keep between runs: keys and values, or the state of a recurrent layer.

    past_key_values.{i}.key, .value   [1, KV heads, capacity, head_dim]    -> present.{i}.key, .value
    past_state.{i}.conv               the convolution's last inputs        -> present_state.{i}.conv
    past_state.{i}.delta              [1, heads, key_dim, value_dim]       -> present_state.{i}.delta

Keys and values of before and after are one buffer, written in place; states are two, so that a run that is interrupted
leaves the old one whole. Graphs of target `plain` have outputs new.{i}.key, .value [1, KV heads, s, head_dim] instead,
which the runtime writes behind the cached rows. (Native operators write states in place, too, and declare them
themselves.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.families.target import AttentionCache, LayerCache, RecurrentCache, Value
from gog_edge.manifest import Dim, DType

Past = tuple[tuple[Value, Value], ...]


class GraphCache(Protocol):
    """What the caches of all targets have: kinds and inputs, by layer."""

    @property
    def layers(self) -> tuple[LayerCache, ...]: ...

    @property
    def past(self) -> Past: ...


def cache_shape(layer: AttentionCache) -> tuple[Dim, ...]:
    """[batch, KV heads, capacity, head_dim]."""
    return (1, layer.heads, "cap", layer.head_dim)


def state_shapes(layer: RecurrentCache) -> dict[str, tuple[Dim, ...]]:
    """Of the convolution's last inputs, a row a token, and of the delta rule's state."""
    return {
        "conv": (1, layer.kernel - 1, layer.channels),
        "delta": (1, layer.heads, layer.key_dim, layer.value_dim),
    }


def declare_past(g: GraphBuilder, layers: tuple[LayerCache, ...], dtype: DType) -> Past:
    """The two inputs of every layer; keys and values are of `dtype`, states float32."""
    past = []
    for i, layer in enumerate(layers):
        if isinstance(layer, RecurrentCache):
            conv, delta = (g.input(f"past_state.{i}.{n}", "float32", shape) for n, shape in state_shapes(layer).items())
            past.append((conv, delta))
        else:
            names = (f"past_key_values.{i}.key", f"past_key_values.{i}.value")
            past.append((g.input(names[0], dtype, cache_shape(layer)), g.input(names[1], dtype, cache_shape(layer))))
    return tuple(past)


def declare_new(g: GraphBuilder, layers: tuple[LayerCache, ...], dtype: DType) -> None:
    """Outputs of the rows that a run adds, for graphs that do not write the cache themselves."""
    _declare(g, layers, dtype, "new", lambda layer: (1, layer.heads, "s", layer.head_dim))


def declare_present(g: GraphBuilder, layers: tuple[LayerCache, ...], dtype: DType) -> None:
    """The outputs that belong to the inputs of `declare_past`."""
    _declare(g, layers, dtype, "present", cache_shape)


def _declare(
    g: GraphBuilder,
    layers: tuple[LayerCache, ...],
    dtype: DType,
    name: str,
    shape_of: Callable[[AttentionCache], tuple[Dim, ...]],
) -> None:
    for i, layer in enumerate(layers):
        if isinstance(layer, RecurrentCache):
            for state, shape in state_shapes(layer).items():
                g.result(f"present_state.{i}.{state}", "float32", shape)
            continue
        for half in ("key", "value"):
            g.result(f"{name}.{i}.{half}", dtype, shape_of(layer))
