"""Target `native`: this package's own CPU operators (`gog_edge.native.contract`), stock ones for the rest.

A linear node takes in the norm before it and the activation or residual after it (`fuse`), attention takes q, k, v
as one tensor and applies rotary itself: a transformer layer is five nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.caches import Past, cache_shape, declare_state, declare_states
from gog_edge.export.graph.native_linear import NativeLinear
from gog_edge.export.graph.ort import MS, OrtTarget
from gog_edge.export.graph.portable import PortableTarget
from gog_edge.families.target import Cache, LayerCache, RecurrentCache, Value, Weight, Windows
from gog_edge.manifest import DecoderSpec, DType
from gog_edge.native.contract import DOMAIN, VERSION, VISION_PRECISIONS


@dataclass(frozen=True)
class NativeCache:
    """Cache inputs that the attention nodes write into; only states have outputs. `scales`: of int8 caches, by
    layer."""

    g: GraphBuilder
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]
    seqlens_k: Value
    prefill_rows: Value
    past: Past
    scales: dict[int, tuple[Value, Value]]

    def finish(self) -> None:
        """Keys and values are written where they are read; states get their outputs."""
        declare_states(self.g, self.layers)


class NativeTarget(OrtTarget):
    """See the module."""

    domains = {"": 21, MS: 1, DOMAIN: VERSION}  # noqa: RUF012 (never changed)
    vision_precision: Literal["bfloat16", "float32", "int8"] = "bfloat16"

    # Plain Add and norm nodes: `fuse` makes them part of the linear nodes on either side.
    add_rms_norm = PortableTarget.add_rms_norm
    add_layer_norm = PortableTarget.add_layer_norm

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
                past.append(declare_state(g, i, layer))
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


_KINDS: dict[DType, str] = {"float16": "DecoderAttentionF16", "int8": "DecoderAttentionI8"}
