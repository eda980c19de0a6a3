"""A decoder computed at once, in numpy: the target that a family builds its graph on reads text instead.

Every layer's weights are read from the checkpoint, used once and dropped, so a layer's worth of them is in memory, and
no framework is needed. Sequences are read side by side, each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.graph.matrix import Experts, Stacked, TensorSource, chunks
from gog_edge.families.target import (
    DeltaInputs,
    DeltaWeights,
    ExpertStack,
    LayerCache,
    Matrix,
    RecurrentCache,
    Role,
    Weight,
    vector,
)
from gog_edge.manifest import DecoderSpec

F32 = NDArray[np.float32]
Listener = Callable[[F32, Matrix, Role], None]
_ERF = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class EagerCache:
    """Sequences are read from their start: nothing is kept."""

    spec: DecoderSpec
    layers: tuple[LayerCache, ...]

    def finish(self) -> None:
        """Nothing to declare."""


class Eager:
    """A `Target` whose values are arrays: [sequences * tokens, features].

    Args:
        inputs: the graph's inputs by name.
        tokens: of each sequence.
        listen: told the input [rows, in] of every matrix before it is multiplied.
    """

    def __init__(self, source: TensorSource, inputs: Mapping[str, NDArray[Any]], tokens: int, listen: Listener) -> None:
        self.source = source
        self.inputs = inputs
        self.tokens = tokens
        self.listen = listen

    # -- interface and weights ------------------------------------------------------------------------------------

    def scope(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def input(self, name: str, *_: Any) -> NDArray[Any]:
        return self.inputs[name]

    def output(self, *_: Any) -> None:
        """Nobody asks for it."""

    def matrix(
        self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, order: tuple[int, ...] = ()
    ) -> Matrix:
        return Stacked(self.source, names, rows, columns, order)

    def expert_stack(self, name: str, count: int, rows: int, columns: int) -> ExpertStack:
        return Experts(self.source, name, count, rows, columns)

    def linear(self, x: F32, weight: Matrix, biases: tuple[str, ...], *, role: Role) -> F32:
        self.listen(x, weight, role)
        if role == "head":  # nothing is read from the logits
            return np.broadcast_to(np.float32(0), (len(x), weight.rows))
        y = _product(x, weight)
        return y + np.concatenate([self._read(name) for name in biases]) if biases else y

    def gated_linear(self, x: F32, weight: Matrix, biases: tuple[str, ...], *, role: Role) -> F32:
        return _swiglu(self.linear(x, weight, biases, role=role))

    def experts(self, x: F32, router: Matrix, gate_up: ExpertStack, down: ExpertStack, top: int) -> F32:
        logits = _product(x, router)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        shares = _softmax(np.take_along_axis(logits, chosen, 1))
        out = np.zeros_like(x)
        for index in np.unique(chosen):
            rows, places = np.nonzero(chosen == index)
            inner = _swiglu(_product(x[rows], gate_up.expert(int(index))))
            out[rows] += shares[rows, places, None] * _product(inner, down.expert(int(index)))
        return out

    # -- arithmetic and norms -------------------------------------------------------------------------------------

    def add(self, a: F32, b: F32) -> F32:
        return a + b

    def reshape(self, x: F32, shape: tuple[int, ...]) -> F32:
        return x.reshape(shape)

    def pick(self, x: F32, index: int) -> F32:
        picked: F32 = x[index]
        return picked

    def split(self, x: F32, widths: tuple[int, ...]) -> list[F32]:
        return np.split(x, np.cumsum(widths)[:-1], axis=-1)

    def last_rows(self, x: F32, count: Any) -> F32:
        return x

    def sigmoid_gate(self, x: F32, gate: F32) -> F32:
        return x * _sigmoid(gate)

    def rms_norm(self, x: F32, weight: Weight, eps: float) -> F32:
        return _rms(x, self._vector(weight), eps)

    def add_rms_norm(self, x: F32, delta: F32 | None, weight: Weight, eps: float) -> tuple[F32, F32]:
        total = x if delta is None else x + delta
        return self.rms_norm(total, weight, eps), total

    def layer_norm(self, x: F32, weight: str, bias: str, eps: float) -> F32:
        centred = x - x.mean(-1, keepdims=True)
        return _rms(centred, self._read(weight), eps) + self._read(bias)

    def add_layer_norm(self, x: F32, delta: F32 | None, weight: str, bias: str, eps: float) -> tuple[F32, F32]:
        total = x if delta is None else x + delta
        return self.layer_norm(total, weight, bias, eps), total

    def gelu(self, x: F32, *, tanh: bool) -> F32:
        if tanh:
            inner = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))
        else:
            inner = _ERF(x * np.float32(math.sqrt(0.5)))
        return np.float32(0.5) * x * (1 + np.asarray(inner, np.float32))

    def parameter(self, name: str, shape: tuple[int, ...]) -> F32:
        return self._read(name).reshape(shape)

    def stack(self, parts: list[F32]) -> F32:
        return np.stack(parts)

    def weighted_rows(self, table: F32, index: NDArray[np.int64], weight: F32) -> F32:
        rows: F32 = np.einsum("krf,kr->rf", table[index], weight)
        return rows

    # -- attention ------------------------------------------------------------------------------------------------

    def cache(self, spec: DecoderSpec, layers: tuple[LayerCache, ...]) -> EagerCache:
        return EagerCache(spec, layers)

    def cached_attention(
        self,
        cache: EagerCache,
        layer: int,
        qkv: F32,
        cos: F32,
        sin: F32,
        norms: tuple[Weight, Weight] | None,
        eps: float,
    ) -> F32:
        spec = cache.spec
        heads, groups, size = spec.heads, spec.kv_heads, spec.head_dim
        q, k, v = (
            part.reshape(-1, self.tokens, count, size)
            for part, count in zip(
                self.split(qkv, (heads * size, groups * size, groups * size)), (heads, groups, groups)
            )
        )
        if norms is not None:
            q, k = self.rms_norm(q, norms[0], eps), self.rms_norm(k, norms[1], eps)
        q, k = _rotary(q, cos, sin), _rotary(k, cos, sin)
        hidden = np.triu(np.full((self.tokens, self.tokens), -np.inf, np.float32), 1)
        out = np.empty_like(q)
        for head in range(heads):
            group = head * groups // heads
            scores = q[:, :, head] @ k[:, :, group].swapaxes(1, 2) * np.float32(size**-0.5) + hidden
            out[:, :, head] = _softmax(scores) @ v[:, :, group]
        return out.reshape(-1, heads * size)

    def gated_delta(self, cache: EagerCache, layer: int, inputs: DeltaInputs, weights: DeltaWeights, eps: float) -> F32:
        kind = cache.layers[layer]
        assert isinstance(kind, RecurrentCache), f"layer {layer} keeps something else"
        qkv, step, rate, gate = (np.asarray(part) for part in (inputs.qkv, inputs.step, inputs.rate, inputs.gate))
        mixed = self._convolution(qkv, self._read(weights.kernel)[:, 0])
        keys = kind.key_heads * kind.key_dim
        q, k, v = self.split(mixed, (keys, keys, kind.heads * kind.value_dim))
        q, k = (self._unit(part, kind) for part in (q, k))
        v = v.reshape(-1, self.tokens, kind.heads, kind.value_dim)
        decay = np.exp(-np.exp(self._read(weights.rate)) * np.logaddexp(0, step + self._read(weights.bias)))
        decay, beta = (part.reshape(v.shape[:3]) for part in (decay.astype(np.float32), _sigmoid(rate)))
        state = np.zeros((len(v), kind.heads, kind.key_dim, kind.value_dim), np.float32)
        out = np.empty_like(v)
        for t in range(self.tokens):
            state *= decay[:, t, :, None, None]
            known = np.einsum("bhkv,bhk->bhv", state, k[:, t], optimize=True)
            state += k[:, t, :, :, None] * ((v[:, t] - known) * beta[:, t, :, None])[:, :, None]
            out[:, t] = np.einsum("bhkv,bhk->bhv", state, q[:, t], optimize=True) * np.float32(kind.key_dim**-0.5)
        normed = _rms(out.reshape(-1, kind.value_dim), self._vector(weights.norm), eps)
        return normed.reshape(len(gate), -1) * _silu(gate)

    def _convolution(self, x: F32, kernel: F32) -> F32:
        """Causal, by channel; kernel [channels, taps]."""
        taps = kernel.shape[1]
        rows = x.reshape(-1, self.tokens, x.shape[1])
        padded = np.pad(rows, ((0, 0), (taps - 1, 0), (0, 0)))
        mixed = sum(padded[:, i : i + self.tokens] * kernel[:, i] for i in range(taps))
        return _silu(np.asarray(mixed, np.float32)).reshape(x.shape)

    def _unit(self, x: F32, kind: RecurrentCache) -> F32:
        x = x.reshape(-1, self.tokens, kind.key_heads, kind.key_dim)
        x = x / np.sqrt(np.square(x).sum(-1, keepdims=True) + np.float32(1e-6))
        return np.repeat(x, kind.heads // kind.key_heads, axis=2)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> F32:
        return np.asarray(self.source.read(name, np.float32))

    def _vector(self, weight: Weight) -> F32:
        of = vector(weight)
        values = self._read(of.name) + np.float32(of.plus)
        return values[list(of.order)] if of.order else values


def _product(x: F32, weight: Matrix) -> F32:
    y = np.empty((len(x), weight.rows), np.float32)
    for start, stop, rows in chunks(weight):
        y[:, start:stop] = x @ rows.T
    return y


def _rms(x: F32, weight: F32, eps: float) -> F32:
    scaled: F32 = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight
    return scaled


def _rotary(x: F32, cos: F32, sin: F32) -> F32:
    """x [sequences, tokens, heads, head_dim]; cos, sin [tokens, head_dim / 2]."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _sigmoid(x: F32) -> F32:
    one = np.float32(1)
    with np.errstate(over="ignore"):  # 1 / infinity is right
        y: F32 = one / (one + np.exp(-x))
    return y


def _silu(x: F32) -> F32:
    return x * _sigmoid(x)


def _swiglu(x: F32) -> F32:
    gate, up = np.split(x, 2, axis=1)
    return _silu(gate) * up


def _softmax(x: F32) -> F32:
    e: F32 = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e
