"""What a family may ask of a target, which is given by the exporter: no family knows ONNX.

Rows are patches or tokens and matrices are 2-D [rows, features] everywhere outside of a target; `t.linear(x, matrix)`
computes x @ matrix.T (+ bias). A target decides with which operators, layouts and types it is done. Implementations,
each replacing what it knows better: `gog_edge.export.graph.portable.PortableTarget` (opset only), `ort.OrtTarget`
(ONNX Runtime's fused operators), `native.NativeTarget` (this package's own operators); `roles.Recorder` computes
nothing and notes which weight plays which role.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gog_edge.manifest import DecoderSpec, Dim, DType

# What a matrix is for: a recipe has a scheme for each that has a `tensor_class`.
Role = Literal[
    "patch_embed", "gates", "router", "vision", "merger", "attention", "attention_out", "mlp", "down_proj", "head"
]
TensorClass = Literal["embedding", "head", "attention", "attention_out", "mlp", "down_proj", "vision", "merger"]


def tensor_class(role: Role) -> TensorClass | None:
    """The class of a role in a recipe. None: always float32; the patch embedding sees pixels, gates and routers are
    small, and what a gate gets wrong stays in a state for long."""
    if role == "patch_embed" or role == "gates" or role == "router":
        return None
    return role


@dataclass(frozen=True)
class Value:
    """A tensor flowing through a graph that is being built: its name and element type."""

    name: str
    dtype: DType = "float32"


class Matrix(Protocol):
    """A weight matrix [rows = outputs, columns = inputs], read in row chunks; `label` names it in nodes and messages.

    `names`: of the checkpoint's tensors that it is stacked of.
    """

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def label(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def read(self, start: int, stop: int) -> NDArray[np.float32]: ...


class ExpertStack(Protocol):
    """One matrix [rows, columns] an expert, in one tensor [count, rows, columns] of the checkpoint."""

    @property
    def count(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def name(self) -> str: ...

    def expert(self, index: int) -> Matrix: ...


@dataclass(frozen=True)
class AttentionCache:
    """Keys and values of one layer, a row a token: [heads, tokens, head_dim] each."""

    heads: int
    head_dim: int

    @property
    def values_per_token(self) -> int:
        """Numbers that the layer keeps for each token, keys and values together."""
        return 2 * self.heads * self.head_dim

    @property
    def fixed_values(self) -> int:
        """Numbers that the layer keeps however many tokens it has seen."""
        return 0


@dataclass(frozen=True)
class RecurrentCache:
    """The state of one layer of linear attention (Gated DeltaNet), as large after a thousand tokens as after one: the
    last inputs of its convolution [channels, kernel - 1] and what it remembers [heads, key_dim, value_dim], both
    float32. `channels` are those of queries, keys (of `key_heads` each) and values (of `heads`)."""

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    @property
    def values_per_token(self) -> int:
        """See `AttentionCache`."""
        return 0

    @property
    def fixed_values(self) -> int:
        """See `AttentionCache`."""
        return self.channels * (self.kernel - 1) + self.heads * self.key_dim * self.value_dim


# What one decoder layer keeps between runs. The rows of attention can be forgotten from the end; a recurrent state
# can't: whoever wants to go back keeps a copy of it (`gog_edge.runtime.snapshots`).
LayerCache = AttentionCache | RecurrentCache


@dataclass(frozen=True)
class Vector:
    """A norm's weight as it is used: `plus` + the tensor `name` (Qwen3.5 stores what differs from 1), its values in
    another `order` where the rows that it belongs to are."""

    name: str
    plus: float = 0.0
    order: tuple[int, ...] = ()


Weight = str | Vector


def vector(weight: Weight) -> Vector:
    """A name alone means the tensor as it is stored."""
    return weight if isinstance(weight, Vector) else Vector(weight)


@dataclass(frozen=True)
class DeltaWeights:
    """Names of a Gated DeltaNet layer's small tensors: the convolution's kernel [channels, 1, kernel], the logarithm
    of the decay's rate and the bias of its time step, [heads] each, and the norm of a head's output [value_dim]."""

    kernel: str
    rate: str
    bias: str
    norm: str


@dataclass(frozen=True)
class DeltaInputs:
    """What a Gated DeltaNet layer is made of, a row a token: `qkv` [rows, channels]; `step` and `rate` [rows, heads],
    of which decay and update rate are made; `gate` [rows, heads * value_dim]."""

    qkv: Value
    step: Value
    rate: Value
    gate: Value


@dataclass(frozen=True)
class Windows:
    """Graph inputs of window attention; see gog_edge.families.layout.Windows."""

    gather: Value
    mask: Value
    scatter: Value


class Cache(Protocol):
    """The caches' graph inputs; `finish` declares their outputs, which must come last."""

    def finish(self) -> None: ...


class Target(Protocol):
    """Ideas a graph is made of."""

    # -- interface and naming
    def input(self, name: str, dtype: DType, shape: tuple[Dim, ...]) -> Value: ...

    def output(self, value: Value, name: str, dtype: DType, shape: tuple[Dim, ...]) -> None: ...

    def scope(self, name: str) -> AbstractContextManager[None]: ...

    # -- weights: named tensors of the checkpoint, checked against the shape that the config implies
    def matrix(
        self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, order: tuple[int, ...] = ()
    ) -> Matrix:
        """Matrices that read one input, stacked along their outputs; a number of rows for each name. With `order`
        output i is row order[i] of the stack."""
        ...

    def expert_stack(self, name: str, count: int, rows: int, columns: int) -> ExpertStack: ...

    def folded_patches(self, name: str, rows: int, temporal: int, patch: int) -> Matrix: ...

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value: ...

    def linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], *, role: Role) -> Value: ...

    # -- arithmetic and shapes
    def add(self, a: Value, b: Value) -> Value: ...

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value: ...

    def stack(self, parts: list[Value]) -> Value: ...

    def pick(self, x: Value, index: int) -> Value: ...

    def split(self, x: Value, widths: tuple[int, ...]) -> list[Value]:
        """x cut along its last axis."""
        ...

    def last_rows(self, x: Value, count: Value) -> Value: ...

    def weighted_rows(self, table: Value, index: Value, weight: Value) -> Value: ...

    # -- norms and activations; add_*: (norm(x + delta), x + delta), delta None at the first block
    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value: ...

    def layer_norm(self, x: Value, weight: str, bias: str, eps: float) -> Value: ...

    def add_rms_norm(self, x: Value, delta: Value | None, weight: Weight, eps: float) -> tuple[Value, Value]: ...

    def add_layer_norm(
        self, x: Value, delta: Value | None, weight: str, bias: str, eps: float
    ) -> tuple[Value, Value]: ...

    def gelu(self, x: Value, *, tanh: bool) -> Value: ...

    def sigmoid_gate(self, x: Value, gate: Value) -> Value:
        """x * sigmoid(gate)."""
        ...

    def gated_linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], *, role: Role) -> Value:
        """silu(gate) * up, where `weight` is [gate; up] stacked."""
        ...

    def experts(self, x: Value, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        """x [n, hidden] through the `top` experts of each row: sum of p_e * down_e(silu(gate_e x) * (up_e x)).

        p is the softmax over the logits of the experts that were picked, those with the highest of router x [n, count],
        in float32. `gate_up` is [gate; up] stacked.
        """
        ...

    # -- attention
    def vision_attention(self, qkv: Value, cos: Value, sin: Value, heads: int, windows: Windows | None) -> Value:
        """qkv [n, 3*hidden] -> [n, hidden]; rotary included; inside each window only where windows are given."""
        ...

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> Cache:
        """Graph inputs for what each layer keeps."""
        ...

    def cached_attention(
        self,
        cache: Cache,
        layer: int,
        qkv: Value,
        cos: Value,
        sin: Value,
        norms: tuple[Weight, Weight] | None,
        eps: float,
    ) -> Value: ...

    def gated_delta(self, cache: Cache, layer: int, inputs: DeltaInputs, weights: DeltaWeights, eps: float) -> Value:
        """Causal convolution, SiLU, then the gated delta rule over the layer's state (Yang et al. 2024, arXiv
        2412.06464), a norm of each head, times silu(gate): [rows, heads * value_dim]. q and k are normalised, q is
        scaled by key_dim ** -0.5; neighbouring value heads share a key head."""
        ...
