"""Target `portable`: ONNX opset 24 only, no vendor operators; runs on ONNX Runtime's CPU provider, parses in TensorRT.

The residual stream and all norms are float32; matrices and attention compute in `compute` (float32 or float16): that
keeps Qwen's large residual values in range, and TensorRT folds the casts into the neighbouring kernels.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.graph import recurrent
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.caches import GraphCache, Past, declare_past, declare_present
from gog_edge.export.graph.experts import ExpertFile
from gog_edge.export.graph.linear import LinearStore
from gog_edge.export.graph.matrix import Experts, FoldedPatches, Stacked, TensorSource, check_shape
from gog_edge.export.graph.portable_experts import LoopedExperts
from gog_edge.families.target import (
    Cache,
    DeltaInputs,
    DeltaWeights,
    ExpertStack,
    LayerCache,
    Matrix,
    RecurrentCache,
    Role,
    Value,
    Weight,
    Windows,
    vector,
)
from gog_edge.manifest import DecoderSpec, Dim, DType

INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class PortableCache:
    """Inputs of the preallocated cache and where the present values are written."""

    g: GraphBuilder
    spec: DecoderSpec
    layers: tuple[LayerCache, ...]
    dtype: DType
    past: Past
    write_indices: Value
    bias: Value
    heads: int  # of an attention node: query heads that share a KV head may be rows of one

    def finish(self) -> None:
        """Declare the present values as outputs."""
        declare_present(self.g, self.layers, self.dtype)


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

    def matrix(
        self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, order: tuple[int, ...] = ()
    ) -> Matrix:
        return Stacked(self.source, names, rows, columns, order)

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

    def split(self, x: Value, widths: tuple[int, ...]) -> list[Value]:
        return self.g.ops("Split", x, self._ints(*widths), dtypes=(None,) * len(widths), axis=-1)

    def last_rows(self, x: Value, count: Value) -> Value:
        start = self.g.op("Neg", count)
        return self.g.op("Slice", x, start, self._ints(INT64_MAX), self._ints(0))

    def weighted_rows(self, table: Value, index: Value, weight: Value) -> Value:
        corners = self.g.op("Gather", table, index, axis=0)  # [4, n, hidden]
        scaled = self.g.op("Mul", corners, self.g.op("Unsqueeze", weight, self._ints(-1)))
        return self.g.op("ReduceSum", scaled, self._ints(0), keepdims=0)

    # -- norms and activations ------------------------------------------------------------------------------------

    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        return self._norm_by(x, self._vector(weight), eps)

    def _norm_by(self, x: Value, weight: Value, eps: float) -> Value:
        return self.g.op("RMSNormalization", x, weight, axis=-1, epsilon=eps)

    def layer_norm(self, x: Value, weight: str, bias: str, eps: float) -> Value:
        return self.g.op("LayerNormalization", x, self._vector(weight), self._vector(bias), axis=-1, epsilon=eps)

    def add_rms_norm(self, x: Value, delta: Value | None, weight: Weight, eps: float) -> tuple[Value, Value]:
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
        gate, up = self.split(self.linear(x, weight, biases, role=role), (weight.rows // 2,) * 2)
        return self.g.op("Mul", self._silu(gate), up)

    def experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        self.matrix_values["router"] += router.rows * router.columns
        self.matrix_values["mlp"] += top * gate_up.rows * gate_up.columns  # those that a row is multiplied with
        self.matrix_values["down_proj"] += top * down.rows * down.columns
        return self._experts(x, router, gate_up, down, top)

    def _experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        logits = self.store.linear(x, router, (), "router")
        return LoopedExperts(self.g, self.store, self.expert_file)(x, logits, gate_up, down, top)

    def sigmoid_gate(self, x: Value, gate: Value) -> Value:
        return self.g.op("Mul", x, self.g.op("Sigmoid", gate))

    def _silu(self, x: Value) -> Value:
        return self.g.op("Mul", x, self.g.op("Sigmoid", x))

    # -- attention ------------------------------------------------------------------------------------------------

    def vision_attention(self, qkv: Value, cos: Value, sin: Value, heads: int, windows: Windows | None) -> Value:
        width = 2 * heads * self.g.width(cos)  # a head is twice as wide as its rotary table
        q, k, v = self.split(qkv, (width, width, width))
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
        bias = self._mask("attention_bias", (1, 1, "s", "cap"))
        # The query heads of one KV head become rows of one head: where an attention node has fewer KV heads than heads,
        # TensorRT copies the whole cache once for every head before it attends. (It has no kernel for a single head.)
        heads = spec.kv_heads if spec.kv_heads > 1 else spec.heads
        if heads < spec.heads:
            bias = self.g.op("Concat", *[bias] * (spec.heads // heads), axis=2)
        past = declare_past(self.g, layers, self.kv_dtype)
        return PortableCache(self.g, spec, layers, self.kv_dtype, past, write, bias, heads)

    def _mask(self, name: str, shape: tuple[Dim, ...]) -> Value:
        """An input that is added to scores."""
        bias = self.g.input(name, "float32", shape)
        if self.compute != "float16":
            return bias
        # the lowest float32 must not become -inf: a softmax row could be NaN
        low = self.g.constant(np.array(np.finfo(np.float16).min, np.float32))
        return self.g.cast(self.g.op("Max", bias, low), "float16")

    def _heads(
        self, spec: DecoderSpec, qkv: Value, norms: tuple[Weight, Weight] | None, eps: float
    ) -> tuple[Value, Value, Value]:
        """Queries, keys and values [1, s, heads, head_dim], the first two normed where there are norms."""
        wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        q, k, v = (
            self.reshape(part, (1, -1, heads, spec.head_dim))
            for part, heads in zip(self.split(qkv, (wide, narrow, narrow)), (spec.heads, spec.kv_heads, spec.kv_heads))
        )
        if norms is not None:
            q, k = self.rms_norm(q, norms[0], eps), self.rms_norm(k, norms[1], eps)
        return q, k, v

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
        assert isinstance(cache, PortableCache), "a cache made by another target"
        spec, g = cache.spec, self.g
        q, k, v = self._heads(spec, qkv, norms, eps)
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
        return self.reshape(y, (-1, spec.heads * spec.head_dim))

    # -- linear attention -----------------------------------------------------------------------------------------

    def gated_delta(self, cache: Cache, layer: int, inputs: DeltaInputs, weights: DeltaWeights, eps: float) -> Value:
        held = cast(GraphCache, cache)
        kind, (conv, state) = held.layers[layer], held.past[layer]
        assert isinstance(kind, RecurrentCache), f"layer {layer} keeps something else"
        keys = kind.key_heads * kind.key_dim
        x = self._convolution(inputs.qkv, self._kernel(weights.kernel, kind), conv, f"present_state.{layer}.conv")
        q, k, v = self.split(x, (keys, keys, kind.heads * kind.value_dim))
        q, k = self._unit(q, kind, kind.key_dim**-0.5), self._unit(k, kind, 1.0)
        decay = self.g.op("Softplus", self.g.op("Add", inputs.step, self._parameter(weights.bias, (kind.heads,))))
        decay = self.g.op("Mul", decay, self._decay_rate(weights.rate, kind))
        parts = (q, k, v, decay, self.g.op("Sigmoid", inputs.rate))
        out = self._delta_rule(kind, parts, state, f"present_state.{layer}.delta")
        out = self.rms_norm(self.reshape(out, (-1, kind.value_dim)), weights.norm, eps)
        return self.g.op("Mul", self.reshape(out, (-1, kind.heads * kind.value_dim)), self._silu(inputs.gate))

    def _convolution(self, x: Value, kernel: NDArray[np.float32], past: Value, present: str) -> Value:
        return self._silu(recurrent.convolution(self.g, x, kernel, past, present))

    def _delta_rule(
        self, kind: RecurrentCache, parts: tuple[Value, Value, Value, Value, Value], past: Value, present: str
    ) -> Value:
        return recurrent.delta_rule(self.g, kind, parts, past, present)

    def _kernel(self, name: str, kind: RecurrentCache) -> NDArray[np.float32]:
        """[channels, taps]."""
        check_shape(self.source, name, (kind.channels, 1, kind.kernel))
        return np.ascontiguousarray(self.source.read(name, np.float32)[:, 0])

    def _decay_rate(self, name: str, kind: RecurrentCache) -> Value:
        check_shape(self.source, name, (kind.heads,))
        return self.g.weight(f"{name}.rate", -np.exp(self.source.read(name, np.float32)))

    def _unit(self, x: Value, kind: RecurrentCache, scale: float) -> Value:
        """Heads of x [rows, key heads * key_dim] as x * rsqrt(sum x^2 + 1e-6) * scale, once for every value head:
        [rows, heads, key_dim]. An RMS norm is that, but for the root of the width."""
        width, group = kind.key_dim, kind.heads // kind.key_heads
        table = self.g.constant(np.full(width, scale * width**-0.5, np.float32))
        x = self._norm_by(self.reshape(x, (-1, kind.key_heads, 1, width)), table, 1e-6 / width)
        if group > 1:
            x = self.g.op("Expand", x, self._ints(1, 1, group, 1))
        return self.reshape(x, (-1, kind.heads, width))

    # -- helpers --------------------------------------------------------------------------------------------------

    def _ints(self, *values: int) -> Value:
        return self.g.constant(np.array(values, np.int64))

    def _vector(self, weight: Weight) -> Value:
        """A norm's weight or bias; float32 like the norms."""
        of = vector(weight)
        if of.name not in self.source.names():
            check_shape(self.source, of.name, (0,))
        values = self.source.read(of.name, np.float32)
        if of.plus:
            values = values + np.float32(of.plus)
        return self.g.weight(of.name, values[list(of.order)] if of.order else values)

    def _parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        """A small tensor that no progress is told of."""
        check_shape(self.source, name, shape)
        return self.g.weight(name, self.source.read(name, np.float32))
