"""Target `ort`: ONNX Runtime's fused operators; replaces what `portable` says in opset nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.caches import Past, declare_past, declare_present
from gog_edge.export.graph.ort_experts import MS, fits, moe
from gog_edge.export.graph.portable import PortableTarget
from gog_edge.export.graph.portable_experts import LoopedExperts
from gog_edge.families.target import Cache, ExpertStack, LayerCache, Matrix, RecurrentCache, Value, Weight, Windows
from gog_edge.manifest import DecoderSpec, DType


@dataclass(frozen=True)
class OrtCache:
    """Past values are bound to the same buffers as the present ones: GroupQueryAttention appends in place."""

    g: GraphBuilder
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]
    dtype: DType
    past: Past
    seqlens_k: Value
    total: Value

    def finish(self) -> None:
        """Declare the present values as outputs."""
        declare_present(self.g, self.layers, self.dtype)


class OrtTarget(PortableTarget):
    """See the module."""

    domains = {"": 21, MS: 1}  # noqa: RUF012 (never changed)

    # -- norms and activations ------------------------------------------------------------------------------------

    def _norm_by(self, x: Value, weight: Value, eps: float) -> Value:
        return self.g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=eps)

    def add_rms_norm(self, x: Value, delta: Value | None, weight: Weight, eps: float) -> tuple[Value, Value]:
        if delta is None:
            return self.rms_norm(x, weight, eps), x
        inputs = (x, delta, self._vector(weight))
        normed, _, _, total = self.g.ops(
            "SkipSimplifiedLayerNormalization", *inputs, dtypes=(None,) * 4, domain=MS, epsilon=eps
        )
        return normed, total

    def add_layer_norm(self, x: Value, delta: Value | None, weight: str, bias: str, eps: float) -> tuple[Value, Value]:
        if delta is None:
            return self.layer_norm(x, weight, bias, eps), x
        inputs = (x, delta, self._vector(weight), self._vector(bias))
        normed, _, _, total = self.g.ops("SkipLayerNormalization", *inputs, dtypes=(None,) * 4, domain=MS, epsilon=eps)
        return normed, total

    def _silu(self, x: Value) -> Value:
        return self.g.op("QuickGelu", x, domain=MS, alpha=1.0)  # x * sigmoid(alpha * x)

    def _experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        logits = self.store.linear(x, router, (), "router")
        schemes = self.store.scheme(gate_up.expert(0), "mlp"), self.store.scheme(down.expert(0), "down_proj")
        if not fits(*schemes, gate_up, down):
            return LoopedExperts(self.g, self.store, self.expert_file, as_told=True)(x, logits, gate_up, down, top)
        return moe(self.g, self.store, self.expert_file, x, logits, gate_up, down, top)

    # -- attention ------------------------------------------------------------------------------------------------

    def _rotary(self, x: Value, cos: Value, sin: Value, heads: int) -> Value:
        y = self._rotary_batch(self.g.op("Unsqueeze", x, self._ints(0)), cos, sin, heads)
        return self.g.op("Squeeze", y, self._ints(0))

    def _rotary_batch(self, x: Value, cos: Value, sin: Value, heads: int) -> Value:
        """[1, n, heads*hd] rotated by the table rows 0 … n-1 (the position 0 says where the rows begin)."""
        return self.g.op("RotaryEmbedding", x, self._ints(0), cos, sin, domain=MS, num_heads=heads)

    def _attention(self, q: Value, k: Value, v: Value, heads: int) -> Value:
        q, k, v = (self.g.op("Unsqueeze", self.g.cast(part, self.compute), self._ints(0)) for part in (q, k, v))
        y = self.g.op("MultiHeadAttention", q, k, v, domain=MS, num_heads=heads)
        return self.g.op("Squeeze", self.g.cast(y, "float32"), self._ints(0))

    def _window_attention(self, q: Value, k: Value, v: Value, heads: int, windows: Windows) -> Value:
        q, k, v = (self.g.op("Gather", self.g.cast(part, self.compute), windows.gather, axis=0) for part in (q, k, v))
        y = self.g.op("MultiHeadAttention", q, k, v, None, windows.mask, domain=MS, num_heads=heads)
        return self._ungather(self.g.cast(y, "float32"), windows.scatter)

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> Cache:
        if spec.head_dim % 8:
            raise CheckpointError(
                f"config.json: head_dim = {spec.head_dim} is not a multiple of 8, which ONNX Runtime's "
                "GroupQueryAttention needs: export with --backend portable"
            )
        seqlens = self.g.input("seqlens_k", "int32", (1,))
        total = self.g.input("total_sequence_length", "int32", ())
        past = declare_past(self.g, layers, self.kv_dtype)
        return OrtCache(self.g, spec, layers, self.kv_dtype, past, seqlens, total)

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
        assert isinstance(cache, OrtCache), "a cache made by another target"
        spec, g = cache.spec, self.g
        wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        q, k, v = self.split(self.reshape(qkv, (1, -1, wide + 2 * narrow)), (wide, narrow, narrow))
        if norms is not None:
            q = self.reshape(self.rms_norm(self.reshape(q, (-1, spec.head_dim)), norms[0], eps), (1, -1, wide))
            k = self.reshape(self.rms_norm(self.reshape(k, (-1, spec.head_dim)), norms[1], eps), (1, -1, narrow))
        q, k = self._rotary_batch(q, cos, sin, spec.heads), self._rotary_batch(k, cos, sin, spec.kv_heads)
        q, k, v = (g.cast(part, self.kv_dtype) for part in (q, k, v))
        past_key, past_value = cache.past[layer]
        y = Value(f"layer.{layer}/attention", self.kv_dtype)
        g.node(
            "GroupQueryAttention",
            [q, k, v, past_key, past_value, cache.seqlens_k, cache.total],
            [y.name, f"present.{layer}.key", f"present.{layer}.value"],
            MS,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            scale=float(np.float32(spec.head_dim) ** np.float32(-0.5)),
        )
        return self.reshape(g.cast(y, "float32"), (-1, wide))

    # -- linear attention -----------------------------------------------------------------------------------------

    def _convolution(self, x: Value, kernel: NDArray[np.float32], past: Value, present: str) -> Value:
        channels, taps = kernel.shape
        weight = self.g.weight(f"{present}.kernel", kernel.reshape(channels, 1, taps))
        y = Value(f"{present}/y")
        self.g.node(
            "CausalConvWithState",
            [self.reshape(x, (1, -1, channels)), weight, None, past],
            [y.name, present],
            MS,
            activation="silu",
            channels_last=1,
        )
        return self.reshape(y, (-1, channels))

    def _delta_rule(
        self, kind: RecurrentCache, parts: tuple[Value, Value, Value, Value, Value], past: Value, present: str
    ) -> Value:
        heads, keys, values = kind.heads, kind.heads * kind.key_dim, kind.heads * kind.value_dim
        widths = (keys, keys, values, heads, heads)
        q, k, v, decay, rate = (self.reshape(part, (1, -1, width)) for part, width in zip(parts, widths))
        y = Value(f"{present}/y")
        self.g.node(
            "LinearAttention",
            [q, k, v, past, decay, rate],
            [y.name, present],
            MS,
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=1.0,
            update_rule="gated_delta",
        )
        return self.reshape(y, (-1, values))
