"""Target `native`: this package's own CPU operators (`gog_edge.native.contract`), stock ones for the rest.

A linear node takes in the norm before it and the activation or residual after it (`fuse`), attention takes q, k, v
as one tensor and applies rotary itself: a transformer layer is five nodes. Linear attention
takes two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gog_edge.export.graph import native_experts
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.caches import Past, cache_shape
from gog_edge.export.graph.native_linear import NativeLinear
from gog_edge.export.graph.ort import OrtTarget
from gog_edge.export.graph.ort_experts import MS
from gog_edge.export.graph.portable import PortableTarget
from gog_edge.families.target import (
    Cache,
    DeltaInputs,
    DeltaWeights,
    ExpertStack,
    LayerCache,
    Matrix,
    RecurrentCache,
    Value,
    Weight,
    Windows,
)
from gog_edge.manifest import DecoderSpec, DType
from gog_edge.native.contract import CONV_REWIND, DELTA_SLOTS, DOMAIN, VERSION, VISION_PRECISIONS, delta_words


@dataclass(frozen=True)
class NativeCache:
    """Cache inputs that the nodes write into; there are no outputs. `scales`: of int8 caches, by layer."""

    g: GraphBuilder
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]
    seqlens_k: Value
    prefill_rows: Value
    past: Past
    scales: dict[int, tuple[Value, Value]]

    def finish(self) -> None:
        """Nothing to declare: the caches are written where they are read."""


class NativeTarget(OrtTarget):
    """See the module."""

    domains = {"": 21, MS: 1, DOMAIN: VERSION}  # noqa: RUF012 (never changed)
    vision_precision: Literal["bfloat16", "float32", "int8"] = "bfloat16"

    # Plain Add and norm nodes: `fuse` makes them part of the linear nodes on either side.
    add_rms_norm = PortableTarget.add_rms_norm
    add_layer_norm = PortableTarget.add_layer_norm

    def _experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        weight = self.store.float_rows(router, "float32")
        return native_experts.experts(self.g, self.store, self.expert_file, x, weight, gate_up, down, top)

    def vision_attention(self, qkv: Value, cos: Value, sin: Value, heads: int, windows: Windows | None) -> Value:
        cut = () if windows is None else (windows.gather, windows.mask)
        precision = VISION_PRECISIONS[self.vision_precision]
        return self.g.op("VisionAttention", qkv, cos, sin, *cut, domain=DOMAIN, heads=heads, precision=precision)

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> Cache:
        g = self.g
        seqlens = g.input("seqlens_k", "int32", (1,))
        prefill_rows = g.input("prefill_rows", "int32", (2,))
        if isinstance(self.store, NativeLinear):
            self.store.prefill_rows = prefill_rows
        past, scales = [], {}
        for i, layer in enumerate(layers):
            if isinstance(layer, RecurrentCache):
                past.append(_declare_state(g, i, layer))
                continue
            shape = cache_shape(layer)
            names = (f"past_key_values.{i}.key", f"past_key_values.{i}.value")
            past.append((g.input(names[0], self.kv_dtype, shape), g.input(names[1], self.kv_dtype, shape)))
            if self.kv_dtype == "int8":
                rows = (g.input(f"{name}_scale", "float32", shape[:3]) for name in names)
                scales[i] = (next(rows), next(rows))
        return NativeCache(g, spec, layers, seqlens, prefill_rows, tuple(past), scales)

    def cached_attention(
        self,
        cache: Cache,
        layer: int,
        qkv: Value,
        cos: Value,
        sin: Value,
        norms: tuple[Weight, Weight] | None,
        eps: float,
    ) -> Value:
        assert isinstance(cache, NativeCache), "a cache made by another target"
        spec = cache.spec
        vectors = (None, None) if norms is None else (self._vector(norms[0]), self._vector(norms[1]))
        scales = cache.scales.get(layer, (None, None))
        return self.g.op(
            _KINDS[self.kv_dtype],
            qkv,
            cos,
            sin,
            cache.seqlens_k,
            *cache.past[layer],
            *vectors,
            *scales,
            cache.prefill_rows,
            domain=DOMAIN,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            epsilon=eps,
        )

    def gated_delta(self, cache: Cache, layer: int, inputs: DeltaInputs, weights: DeltaWeights, eps: float) -> Value:
        assert isinstance(cache, NativeCache), "a cache made by another target"
        g, kind, (conv, state) = self.g, cache.layers[layer], cache.past[layer]
        assert isinstance(kind, RecurrentCache), f"layer {layer} keeps something else"
        kernel = g.weight(weights.kernel, np.ascontiguousarray(self._kernel(weights.kernel, kind).T))
        qkv = g.op("CausalConv", inputs.qkv, kernel, cache.seqlens_k, conv, domain=DOMAIN)
        return g.op(
            "GatedDelta",
            qkv,
            inputs.step,
            inputs.rate,
            cache.seqlens_k,
            state,
            self._decay_rate(weights.rate, kind),
            self._parameter(weights.bias, (kind.heads,)),
            inputs.gate,
            self._vector(weights.norm),
            domain=DOMAIN,
            key_heads=kind.key_heads,
            value_heads=kind.heads,
            key_size=kind.key_dim,
            value_size=kind.value_dim,
            epsilon=eps,
        )


def _declare_state(g: GraphBuilder, i: int, kind: RecurrentCache) -> tuple[Value, Value]:
    """A ring of the convolution's inputs, and slots of the delta rule's state."""
    words = delta_words(kind.key_heads, kind.heads, kind.key_dim, kind.value_dim)
    return (
        g.input(f"past_state.{i}.conv", "float32", (kind.kernel - 1 + CONV_REWIND, kind.channels)),
        g.input(f"past_state.{i}.delta", "float32", (DELTA_SLOTS, words)),
    )


_KINDS: dict[DType, str] = {"float16": "DecoderAttentionF16", "int8": "DecoderAttentionI8"}
