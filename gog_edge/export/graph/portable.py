"""Target `portable`: ONNX opset 24 only, no vendor operators; runs on ONNX Runtime's CPU provider, parses in TensorRT.

The residual stream and all norms are float32; matrices and attention compute in `compute` (float32 or float16): that
keeps Qwen's large residual values in range, and TensorRT folds the casts into the neighbouring kernels.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.experts import ExpertFile
from gog_edge.export.graph.linear import LinearStore
from gog_edge.export.graph.matrix import Experts, FoldedPatches, Stacked, TensorSource, check_shape
from gog_edge.export.graph.portable_experts import LoopedExperts
from gog_edge.families.target import Cache, ExpertStack, LayerCache, Matrix, Role, Value, Windows
from gog_edge.manifest import DecoderSpec, Dim, DType

INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class PortableCache:
    """Inputs of the preallocated cache and where the present values are written."""

    g: GraphBuilder
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]
    dtype: DType
    past: tuple[tuple[Value, Value], ...]
    write_indices: Value
    bias: Value
    heads: int  # of an attention node: query heads that share a KV head may be rows of one

    def finish(self) -> None:
        """Declare the present values as outputs."""
        declare_present(self.g, self.layers, self.dtype)


def cache_shape(layer: LayerCache) -> tuple[Dim, ...]:
    """[batch, KV heads, capacity, head_dim]."""
    return (1, layer.heads, "cap", layer.head_dim)


def declare_past(g: GraphBuilder, layers: tuple[LayerCache, ...], dtype: DType) -> tuple[tuple[Value, Value], ...]:
    """Inputs past_key_values.{i}.key / .value of all layers."""
    return tuple(
        (
            g.input(f"past_key_values.{i}.key", dtype, cache_shape(layer)),
            g.input(f"past_key_values.{i}.value", dtype, cache_shape(layer)),
        )
        for i, layer in enumerate(layers)
    )


def declare_present(g: GraphBuilder, layers: tuple[LayerCache, ...], dtype: DType) -> None:
    """Outputs present.{i}.key / .value of all layers."""
    for i, layer in enumerate(layers):
        for half in ("key", "value"):
            g.result(f"present.{i}.{half}", dtype, cache_shape(layer))


class PortableTarget:
    """See the module."""

    domains: dict[str, int] = {"": 24}  # noqa: RUF012 (never changed; subclasses replace it)

    def __init__(
        self,
        g: GraphBuilder,
        source: TensorSource,
        store: LinearStore,
        expert_file: ExpertFile,
        compute: Literal["float32", "float16"] = "float32",
        kv_dtype: Literal["float32", "float16", "int8"] = "float32",
    ) -> None:
        self.g = g
        self.source = source
        self.store = store
        self.expert_file = expert_file
        self.compute: DType = compute
        self.kv_dtype: DType = kv_dtype
        self.matrix_values: Counter[Role] = Counter()  # what linear layers were built so far

    # -- interface and naming -------------------------------------------------------------------------------------

    def input(self, name: str, dtype: DType, shape: tuple[Dim, ...]) -> Value:
        return self.g.input(name, dtype, shape)

    def output(self, value: Value, name: str, dtype: DType, shape: tuple[Dim, ...]) -> None:
        self.g.output(value, name, dtype, shape)

    def scope(self, name: str) -> AbstractContextManager[None]:
        return self.g.scope(name)

    # -- weights --------------------------------------------------------------------------------------------------

    def matrix(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> Matrix:
        return Stacked(self.source, names, rows, columns)

    def expert_stack(self, name: str, count: int, rows: int, columns: int) -> ExpertStack:
        return Experts(self.source, name, count, rows, columns)

    def folded_patches(self, name: str, rows: int, temporal: int, patch: int) -> Matrix:
        return FoldedPatches(self.source, name, rows, temporal, patch)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        check_shape(self.source, name, shape)
        self.store.progress(int(np.prod(shape)))
        return self.g.weight(name, self.source.read(name, np.float32))

    def linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], *, role: Role) -> Value:
        self.matrix_values[role] += weight.rows * weight.columns
        y = self.store.linear(self.g.cast(x, self.compute), weight, biases, role)
        return self.g.cast(y, "float32")

    # -- arithmetic and shapes ------------------------------------------------------------------------------------

    def add(self, a: Value, b: Value) -> Value:
        return self.g.op("Add", a, b)

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        return self.g.op("Reshape", x, self._ints(*shape))

    def stack(self, parts: list[Value]) -> Value:
        raised = [self.g.op("Unsqueeze", part, self._ints(0)) for part in parts]
        return self.g.op("Concat", *raised, axis=0)

    def pick(self, x: Value, index: int) -> Value:
        return self.g.op("Gather", x, self.g.constant(np.array(index, np.int64)), axis=0)

    def last_rows(self, x: Value, count: Value) -> Value:
        start = self.g.op("Neg", count)
        return self.g.op("Slice", x, start, self._ints(INT64_MAX), self._ints(0))

    def weighted_rows(self, table: Value, index: Value, weight: Value) -> Value:
        corners = self.g.op("Gather", table, index, axis=0)  # [4, n, hidden]
        scaled = self.g.op("Mul", corners, self.g.op("Unsqueeze", weight, self._ints(-1)))
        return self.g.op("ReduceSum", scaled, self._ints(0), keepdims=0)

    # -- norms and activations ------------------------------------------------------------------------------------

    def rms_norm(self, x: Value, weight: str, eps: float) -> Value:
        return self.g.op("RMSNormalization", x, self._vector(weight), axis=-1, epsilon=eps)

    def layer_norm(self, x: Value, weight: str, bias: str, eps: float) -> Value:
        return self.g.op("LayerNormalization", x, self._vector(weight), self._vector(bias), axis=-1, epsilon=eps)

    def add_rms_norm(self, x: Value, delta: Value | None, weight: str, eps: float) -> tuple[Value, Value]:
        total = x if delta is None else self.add(x, delta)
        return self.rms_norm(total, weight, eps), total

    def add_layer_norm(self, x: Value, delta: Value | None, weight: str, bias: str, eps: float) -> tuple[Value, Value]:
        total = x if delta is None else self.add(x, delta)
        return self.layer_norm(total, weight, bias, eps), total

    def gelu(self, x: Value, *, tanh: bool) -> Value:
        return self.g.op("Gelu", x, approximate="tanh" if tanh else "none")

    def gated_linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], *, role: Role) -> Value:
        fused = self.store.gated(self.g.cast(x, self.compute), weight, biases, role)
        if fused is not None:
            self.matrix_values[role] += weight.rows * weight.columns
            return self.g.cast(fused, "float32")
        gate, up = self._split(self.linear(x, weight, biases, role=role), (weight.rows // 2,) * 2)
        return self.g.op("Mul", self._silu(gate), up)

    def experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        self.matrix_values["router"] += router.rows * router.columns
        self.matrix_values["mlp"] += top * gate_up.rows * gate_up.columns  # those that a row is multiplied with
        self.matrix_values["down_proj"] += top * down.rows * down.columns
        return self._experts(x, router, gate_up, down, top)

    def _experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        logits = self.store.linear(x, router, (), "router")
        return LoopedExperts(self.g, self.store, self.expert_file)(x, logits, gate_up, down, top)

    def _silu(self, x: Value) -> Value:
        return self.g.op("Mul", x, self.g.op("Sigmoid", x))

    # -- attention ------------------------------------------------------------------------------------------------

    def vision_attention(self, qkv: Value, cos: Value, sin: Value, heads: int, windows: Windows | None) -> Value:
        width = 2 * heads * self.g.width(cos)  # a head is twice as wide as its rotary table
        q, k, v = self._split(qkv, (width, width, width))
        q, k = self._rotary(q, cos, sin, heads), self._rotary(k, cos, sin, heads)
        if windows is None:
            return self._attention(q, k, v, heads)
        return self._window_attention(q, k, v, heads, windows)

    def _rotary(self, x: Value, cos: Value, sin: Value, heads: int) -> Value:
        batch = (self.g.op("Unsqueeze", table, self._ints(0)) for table in (cos, sin))
        y = self.g.op("RotaryEmbedding", self.g.op("Unsqueeze", x, self._ints(0)), *batch, num_heads=heads)
        return self.g.op("Squeeze", y, self._ints(0))

    def _attention(self, q: Value, k: Value, v: Value, heads: int) -> Value:
        q, k, v = (self.g.op("Unsqueeze", self.g.cast(part, self.compute), self._ints(0)) for part in (q, k, v))
        y = self.g.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)
        return self.g.op("Squeeze", self.g.cast(y, "float32"), self._ints(0))

    def _window_attention(self, q: Value, k: Value, v: Value, heads: int, windows: Windows) -> Value:
        gather = windows.gather
        q, k, v = (self.g.op("Gather", self.g.cast(part, self.compute), gather, axis=0) for part in (q, k, v))
        allowed = self.g.op("Unsqueeze", self.g.cast(windows.mask, "bool"), self._ints(1, 2))  # [W, 1, 1, L]
        zero, low = (self.g.constant(np.array(value, self.compute)) for value in (0, np.finfo(self.compute).min))
        bias = self.g.op("Where", allowed, zero, low, dtype=self.compute)
        wide = self.g.op("Expand", bias, self._window_shape(gather))
        y = self.g.op("Attention", q, k, v, wide, q_num_heads=heads, kv_num_heads=heads)
        return self._ungather(self.g.cast(y, "float32"), windows.scatter)

    def _window_shape(self, gather: Value) -> Value:
        """[W, 1, L, L] of a gather [W, L]."""
        shape = self.g.op("Shape", gather, dtype="int64")
        count = self.g.op("Slice", shape, self._ints(0), self._ints(1))
        length = self.g.op("Slice", shape, self._ints(1), self._ints(2))
        return self.g.op("Concat", count, self._ints(1), length, length, axis=0)

    def _ungather(self, y: Value, scatter: Value) -> Value:
        """[W, L, hidden] back to rows [n, hidden]: merge the two leading axes, take each row's slot."""
        shape = self.g.op("Shape", y, dtype="int64", start=2)
        flat = self.g.op("Reshape", y, self.g.op("Concat", self._ints(-1), shape, axis=0))
        return self.g.op("Gather", flat, scatter, axis=0)

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> Cache:
        write = self.g.input("write_indices", "int64", (1,))
        bias = self.g.input("attention_bias", "float32", (1, 1, "s", "cap"))
        if self.compute == "float16":  # the lowest float32 must not become -inf: a softmax row could be NaN
            low = self.g.constant(np.array(np.finfo(np.float16).min, np.float32))
            bias = self.g.cast(self.g.op("Max", bias, low), "float16")
        # The query heads of one KV head become rows of one head: where an attention node has fewer KV heads than heads,
        # TensorRT copies the whole cache once for every head before it attends. (It has no kernel for a single head.)
        heads = spec.kv_heads if spec.kv_heads > 1 else spec.heads
        if heads < spec.heads:
            bias = self.g.op("Concat", *[bias] * (spec.heads // heads), axis=2)
        past = declare_past(self.g, layers, self.kv_dtype)
        return PortableCache(self.g, spec, layers, self.kv_dtype, past, write, bias, heads)

    def cached_attention(
        self,
        cache: Cache,
        layer: int,
        qkv: Value,
        cos: Value,
        sin: Value,
        norms: tuple[str, str] | None,
        eps: float,
    ) -> Value:
        assert isinstance(cache, PortableCache), "a cache made by another target"
        spec, g = cache.spec, self.g
        wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        q, k, v = self._split(qkv, (wide, narrow, narrow))
        q, k, v = (
            self.reshape(part, (1, -1, heads, spec.head_dim))  # [1, s, heads, hd]
            for part, heads in ((q, spec.heads), (k, spec.kv_heads), (v, spec.kv_heads))
        )
        if norms is not None:
            q, k = self.rms_norm(q, norms[0], eps), self.rms_norm(k, norms[1], eps)
        turned = []
        tables = [g.op("Unsqueeze", table, self._ints(0)) for table in (cos, sin)]
        for part in (q, k):
            turned.append(g.op("RotaryEmbedding", g.op("Transpose", part, perm=(0, 2, 1, 3)), *tables))
        q, k = g.cast(turned[0], self.compute), g.cast(turned[1], self.kv_dtype)
        v = g.op("Transpose", g.cast(v, self.kv_dtype), perm=(0, 2, 1, 3))
        present = []
        for half, past, new in zip(("key", "value"), cache.past[layer], (k, v)):
            name = f"present.{layer}.{half}"
            g.node("TensorScatter", [past, new, cache.write_indices], [name], axis=2)
            present.append(g.cast(Value(name, self.kv_dtype), self.compute))
        if cache.heads < spec.heads:
            q = self.reshape(q, (1, cache.heads, -1, spec.head_dim))  # [1, KV heads, group * s, hd]
        y = g.op("Attention", q, *present, cache.bias)
        if cache.heads < spec.heads:
            y = self.reshape(y, (1, spec.heads, -1, spec.head_dim))
        y = g.op("Transpose", g.cast(y, "float32"), perm=(0, 2, 1, 3))
        return self.reshape(y, (-1, wide))

    # -- helpers --------------------------------------------------------------------------------------------------

    def _split(self, x: Value, widths: tuple[int, ...]) -> list[Value]:
        return self.g.ops("Split", x, self._ints(*widths), dtypes=(None,) * len(widths), axis=-1)

    def _ints(self, *values: int) -> Value:
        return self.g.constant(np.array(values, np.int64))

    def _vector(self, name: str) -> Value:
        """A norm's weight or bias; float32 like the norms."""
        if name not in self.source.names():
            check_shape(self.source, name, (0,))
        return self.g.weight(name, self.source.read(name, np.float32))
