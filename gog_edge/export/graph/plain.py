"""Target `plain`: ONNX operators up to opset 21 that TensorRT 10.3 and OpenVINO know, all else written out.

Norms of root mean square, rotary embeddings and attention are made of products, sums and reductions
(`tests/export/operators/` has the lists of what runtimes know). The KV cache is read only: a layer's new rows are
outputs, which the runtime writes behind the others, and the scores of cached and new rows are joined, not the rows. So
a graph may be compiled for a fixed capacity, and a run copies no cache. (One maximum and one sum over both, without
joining the scores either, is what TensorRT-RTX 1.7 fails to compile with int4 weights: docs/log.md.)

    past_key_values.{i}.key, .value   [1, KV heads, capacity, head_dim]; `attention_bias` hides what is not there
    new.{i}.key, .value               [1, KV heads, s, head_dim]
    attention_bias [1, 1, s, cap]     added to scores of cached rows, `new_bias` [1, 1, s, s] to those of new rows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.caches import Past, declare_new, declare_past
from gog_edge.export.graph.portable import INT64_MAX, PortableTarget
from gog_edge.families.target import Cache, LayerCache, Value, Weight, Windows
from gog_edge.manifest import DecoderSpec, DType


@dataclass(frozen=True)
class PlainCache:
    """Inputs of the cache that is read, and the masks [1, 1, group * s, …] of cached and of new rows."""

    g: GraphBuilder
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]
    dtype: DType
    past: Past
    bias: Value
    new_bias: Value

    def finish(self) -> None:
        """Declare the new rows as outputs."""
        declare_new(self.g, self.layers, self.dtype)


class PlainTarget(PortableTarget):
    """See the module."""

    domains: dict[str, int] = {"": 21}  # noqa: RUF012 (never changed)

    # -- norms ----------------------------------------------------------------------------------------------------

    def _norm_by(self, x: Value, weight: Value, eps: float) -> Value:
        """x / sqrt(mean x^2 + eps) * weight."""
        mean = self.g.op("ReduceMean", self.g.op("Mul", x, x), self._ints(-1), keepdims=1)
        root = self.g.op("Sqrt", self.g.op("Add", mean, self.g.constant(np.array(eps, np.float32))))
        return self.g.op("Mul", self.g.op("Div", x, root), weight)

    # -- attention ------------------------------------------------------------------------------------------------

    def vision_attention(self, qkv: Value, cos: Value, sin: Value, heads: int, windows: Windows | None) -> Value:
        g, half = self.g, self.g.width(cos)
        width = 2 * heads * half
        q, k, v = (self.reshape(part, (-1, heads, 2 * half)) for part in self.split(qkv, (width, width, width)))
        cos, sin = (g.op("Unsqueeze", table, self._ints(1)) for table in (cos, sin))
        q, k = self._turn(q, cos, sin, half), self._turn(k, cos, sin, half)
        q, k, v = (g.cast(part, self.compute) for part in (self._scaled(q, 2 * half), k, v))
        bias = None
        if windows is None:
            q, k, v = (g.op("Unsqueeze", part, self._ints(0)) for part in (q, k, v))
        else:
            q, k, v = (g.op("Gather", part, windows.gather, axis=0) for part in (q, k, v))  # [W, L, heads, hd]
            allowed = g.op("Unsqueeze", g.cast(windows.mask, "bool"), self._ints(1, 2))  # [W, 1, 1, L]
            zero, low = (g.constant(np.array(value, self.compute)) for value in (0, np.finfo(self.compute).min))
            bias = g.op("Where", allowed, zero, low, dtype=self.compute)
        q, v = (g.op("Transpose", part, perm=(0, 2, 1, 3)) for part in (q, v))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=(0, 2, 3, 1)))
        shares = g.op("Softmax", scores if bias is None else g.op("Add", scores, bias), axis=-1)
        y = g.op("Transpose", g.op("MatMul", shares, v), perm=(0, 2, 1, 3))
        y = self.reshape(g.cast(y, "float32"), (-1, width))
        return y if windows is None else g.op("Gather", y, windows.scatter, axis=0)

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> Cache:
        biases = []
        for name, shape in (("attention_bias", (1, 1, "s", "cap")), ("new_bias", (1, 1, "s", "s"))):
            bias = self._mask(name, shape)
            group = spec.heads // spec.kv_heads  # query heads of one KV head are rows of one product
            biases.append(self.g.op("Concat", *[bias] * group, axis=2) if group > 1 else bias)
        past = declare_past(self.g, layers, self.kv_dtype)
        return PlainCache(self.g, spec, layers, self.kv_dtype, past, *biases)

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
        assert isinstance(cache, PlainCache), "a cache made by another target"
        spec, g = cache.spec, self.g
        q, k, v = self._heads(spec, qkv, norms, eps)
        cos, sin = (g.op("Unsqueeze", table, self._ints(0, 2)) for table in (cos, sin))  # [1, s, 1, hd/2]
        q, k = (self._turn(part, cos, sin, spec.head_dim // 2) for part in (q, k))
        q, k, v = (g.op("Transpose", part, perm=(0, 2, 1, 3)) for part in (self._scaled(q, spec.head_dim), k, v))
        q = self.reshape(g.cast(q, self.compute), (1, spec.kv_heads, -1, spec.head_dim))  # [1, KV heads, group * s, hd]
        new = []
        for half, rows in (("key", k), ("value", v)):
            g.node("Cast", [rows], [f"new.{layer}.{half}"], to=g.element(self.kv_dtype))
            new.append(g.cast(Value(f"new.{layer}.{half}", self.kv_dtype), self.compute))
        keys, values = (g.cast(part, self.compute) for part in cache.past[layer])
        y = self._attend(q, (keys, new[0]), (values, new[1]), (cache.bias, cache.new_bias))
        y = self.reshape(g.cast(y, "float32"), (1, spec.heads, -1, spec.head_dim))
        return self.reshape(g.op("Transpose", y, perm=(0, 2, 1, 3)), (-1, spec.heads * spec.head_dim))

    def _attend(
        self, q: Value, keys: tuple[Value, Value], values: tuple[Value, Value], biases: tuple[Value, Value]
    ) -> Value:
        """Attention over cached and new rows, which stay where they are: one softmax over the scores of both."""
        g = self.g
        scores = [
            g.op("Add", g.op("MatMul", q, g.op("Transpose", k, perm=(0, 1, 3, 2))), b) for k, b in zip(keys, biases)
        ]
        shares = g.op("Softmax", g.op("Concat", *scores, axis=-1), axis=-1)
        size = g.op("Slice", g.op("Shape", keys[1], dtype="int64"), self._ints(2), self._ints(3))
        start = g.op("Neg", size)
        parts = (
            g.op("Slice", shares, self._ints(0), start, self._ints(3)),
            g.op("Slice", shares, start, self._ints(INT64_MAX), self._ints(3)),
        )
        return g.op("Add", *(g.op("MatMul", part, v) for part, v in zip(parts, values)))

    def _turn(self, x: Value, cos: Value, sin: Value, half: int) -> Value:
        """Rotary embedding: the halves (a, b) of the last axis become (a cos - b sin, b cos + a sin)."""
        g = self.g
        a, b = self.split(x, (half, half))
        first = g.op("Sub", g.op("Mul", a, cos), g.op("Mul", b, sin))
        second = g.op("Add", g.op("Mul", b, cos), g.op("Mul", a, sin))
        return g.op("Concat", first, second, axis=-1)

    def _scaled(self, q: Value, width: int) -> Value:
        return self.g.op("Mul", q, self.g.constant(np.array(np.float32(width) ** np.float32(-0.5), np.float32)))
