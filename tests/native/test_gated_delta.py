"""CausalConv and GatedDelta against loops over tokens in float64, which share no code with the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.native.contract import DELTA_CHUNK, delta_words
from tests.native.graphs import needs_ops, session

pytestmark = needs_ops
F32 = np.float32
Array = NDArray[Any]


def length(total: int) -> Array:
    """seqlens_k after `total` tokens."""
    return np.array([total - 1], np.int32)


class Conv:
    """A convolution of `channels` with `taps` weights over tokens that come in runs."""

    def __init__(self, channels: int, taps: int, kept: int, *, bias: bool = False, silu: bool = True) -> None:
        rng = np.random.default_rng(channels + taps)
        self.weight = rng.standard_normal((taps, channels)).astype(F32)
        self.bias = rng.standard_normal(channels).astype(F32) if bias else None
        self.history = np.full((kept, channels), np.nan, F32)
        self.silu, self.sessions = silu, dict[int, Any]()

    def run(self, x: Array, total: int, threads: int = 1) -> Array:
        """y of the tokens x [s, channels], `total` tokens with them."""
        inputs: list[tuple[str, Array | None]] = [("x", x), ("weight", self.weight), ("length", length(total))]
        inputs.append(("history", self.history))
        inputs.append(("bias", self.bias))
        if threads not in self.sessions:
            self.sessions[threads] = session("CausalConv", inputs, threads, activation=int(self.silu))
        feeds = {name: value for name, value in inputs if value is not None}
        return np.asarray(self.sessions[threads].run(None, feeds)[0])

    def want(self, x: Array) -> Array:
        """y of all tokens x, in float64."""
        taps = len(self.weight)
        padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x.astype(np.float64)])
        y = sum(padded[i : i + len(x)] * self.weight[i].astype(np.float64) for i in range(taps))
        y = y if self.bias is None else y + self.bias
        return np.asarray(y / (1 + np.exp(-y)) if self.silu else y)


CONVS = {
    "four taps": Conv(160, 4, 3),
    "two taps, odd channels": Conv(37, 2, 1, bias=True),
    "seven taps": Conv(16, 7, 9, silu=False),
    "one tap": Conv(5, 1, 1),
    "many channels": Conv(1300, 3, 40, bias=True),
}


def cuts(count: int, rng: np.random.Generator) -> list[list[int]]:
    """Ways to run `count` tokens: one by one, at once, and some between."""
    some = [np.diff([0, *np.unique(rng.integers(1, count, n)), count]) for n in (1, 2, 5, 20)] if count > 1 else []
    return [[1] * count, [count], *([int(n) for n in cut] for cut in some)]


@pytest.mark.parametrize("name", CONVS)
def test_convolution(name: str) -> None:
    conv, rng = CONVS[name], np.random.default_rng(3)
    x = rng.standard_normal((70, conv.weight.shape[1])).astype(F32)
    want = conv.want(x)
    alone: Array | None = None
    for number, cut in enumerate(cuts(len(x), rng)):
        conv.history[:] = np.nan
        ends = np.cumsum(cut)
        y = np.concatenate([conv.run(x[e - n : e], int(e), 1 + number % 3) for e, n in zip(ends, cut)])
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        alone = y if alone is None else alone
        assert np.array_equal(y, alone), cut


def test_convolution_goes_back_by_a_smaller_length() -> None:
    conv, rng = Conv(33, 4, 3 + 8), np.random.default_rng(4)
    x = rng.standard_normal((30, 33)).astype(F32)
    first = conv.run(x[:20], 20)
    conv.run(rng.standard_normal((8, 33)).astype(F32), 28)  # guesses, all refused
    again = np.concatenate([first, conv.run(x[20:], 30)])
    np.testing.assert_allclose(again, conv.want(x), rtol=1e-5, atol=1e-5)


class Delta:
    """One layer of linear attention with its state, over tokens that come in runs."""

    def __init__(
        self, nk: int, nv: int, dk: int, dv: int, slots: int = 1, fused: bool = False, l2: bool = True
    ) -> None:
        self.nk, self.nv, self.dk, self.dv, self.fused, self.l2 = nk, nv, dk, dv, fused, l2
        rng = np.random.default_rng(nk * dk + dv)
        self.state = np.full((slots, delta_words(nk, nv, dk, dv)), np.nan, F32)
        self.rate = -np.exp(rng.standard_normal(nv)).astype(F32) if fused else None
        self.bias = rng.standard_normal(nv).astype(F32) if fused else None
        self.norm = rng.standard_normal(dv).astype(F32) if fused else None
        self.sessions = dict[int, Any]()

    def tokens(self, count: int, seed: int, decay: str = "usual") -> dict[str, Array]:
        """qkv, a, b and gate of `count` tokens."""
        rng = np.random.default_rng(seed)
        nk, nv, dk, dv = self.nk, self.nv, self.dk, self.dv
        g = -np.exp(rng.standard_normal((count, nv)) - 2)
        if decay == "none":
            g[:] = 0
        elif decay == "strong":
            g[:] = -50
        elif decay == "both":  # a small decay behind many large ones
            g[rng.random((count, nv)) < 0.5] = -50
            g[rng.random((count, nv)) < 0.05] = -np.inf
        beta = rng.random((count, nv))
        beta[rng.random((count, nv)) < 0.2] = 0
        beta[rng.random((count, nv)) < 0.2] = 1
        if self.fused:
            g, beta = rng.standard_normal((count, nv)) * 4, rng.standard_normal((count, nv)) * 3
        qkv = rng.standard_normal((count, 2 * nk * dk + nv * dv))
        if not self.l2:  # or sums grow without bound
            qkv[:, : 2 * nk * dk] *= 0.7 / np.sqrt(dk)
        made = {"qkv": qkv, "a": g, "b": beta}
        if self.fused:
            made["gate"] = rng.standard_normal((count, nv * dv))
        return {name: np.asarray(value, F32) for name, value in made.items()}

    def run(self, tokens: dict[str, Array], total: int, threads: int = 1) -> Array:
        """y of `tokens`, `total` tokens with them."""
        inputs: list[tuple[str, Array | None]] = [(name, tokens[name]) for name in ("qkv", "a", "b")]
        inputs += [("length", length(total)), ("state", self.state), ("rate", self.rate), ("bias", self.bias)]
        inputs += [("gate", tokens.get("gate")), ("norm", self.norm)]
        if threads not in self.sessions:
            self.sessions[threads] = session(
                "GatedDelta", inputs, threads, key_heads=self.nk, value_heads=self.nv, key_size=self.dk,
                value_size=self.dv, l2_norm=int(self.l2),
            )  # fmt: skip
        feeds = {name: value for name, value in inputs if value is not None}
        return np.asarray(self.sessions[threads].run(None, feeds)[0])

    def matrices(self, total: int) -> Array:
        """S [value_heads, dk, dv] after `total` tokens, from the state."""
        padded, chunk = -(-self.dv // 16) * 16, total // DELTA_CHUNK
        slot = self.state[chunk % len(self.state)].astype(np.float64)
        per_head = (self.dk + DELTA_CHUNK) * padded + 2 * DELTA_CHUNK
        heads = slot[: self.nv * per_head].reshape(self.nv, per_head)
        s = heads[:, : self.dk * padded].reshape(self.nv, self.dk, padded)[:, :, : self.dv]
        d = heads[:, self.dk * padded : -2 * DELTA_CHUNK].reshape(self.nv, DELTA_CHUNK, padded)
        sums = heads[:, -2 * DELTA_CHUNK :].reshape(self.nv, 2, DELTA_CHUNK).sum(axis=1)
        keys = slot[self.nv * per_head :].reshape(self.nk, 4, self.dk, 16).transpose(0, 1, 3, 2)
        keys = np.repeat(keys.reshape(self.nk, DELTA_CHUNK, self.dk), self.nv // self.nk, axis=0)
        rows = total % DELTA_CHUNK
        if rows == 0:
            return np.asarray(s) if total else np.zeros_like(s)
        last = sums[:, rows - 1]
        weights = np.exp(last[:, None] - sums[:, :rows])
        grown = np.einsum("hik,hi,hiv->hkv", keys[:, :rows], weights, d[:, :rows, : self.dv])
        return np.asarray(np.exp(last)[:, None, None] * s + grown)

    def want(self, tokens: dict[str, Array]) -> tuple[Array, Array]:
        """y of all tokens and the last S, token by token in float64."""
        exact: dict[str, Array] = {name: value.astype(np.float64) for name, value in tokens.items()}
        count, heads = len(exact["a"]), self.nv // self.nk
        q, k, v = np.split(exact["qkv"], [self.nk * self.dk, 2 * self.nk * self.dk], axis=1)
        q, k = (np.repeat(x.reshape(count, self.nk, self.dk), heads, axis=1) for x in (q, k))
        v = v.reshape(count, self.nv, self.dv)
        if self.l2:
            q, k = (x / np.sqrt((x * x).sum(axis=2, keepdims=True) + 1e-6) for x in (q, k))
        q = q / np.sqrt(self.dk)
        g: Array = exact["a"]
        beta: Array = exact["b"]
        if self.rate is not None and self.bias is not None:
            g, beta = self.rate * np.logaddexp(0, g + self.bias), 1 / (1 + np.exp(-beta))
        s, o = np.zeros((self.nv, self.dk, self.dv)), np.zeros_like(v)
        for t in range(count):
            s *= np.exp(g[t])[:, None, None]
            d = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", s, k[t]))
            s += k[t][:, :, None] * d[:, None, :]
            o[t] = np.einsum("hkv,hk->hv", s, q[t])
        if self.norm is not None:
            z = exact["gate"].reshape(o.shape)
            o = o / np.sqrt((o * o).mean(axis=2, keepdims=True) + 1e-6) * self.norm * z / (1 + np.exp(-z))
        return o.reshape(count, -1), s


def part(tokens: dict[str, Array], begin: int, end: int) -> dict[str, Array]:
    """Tokens [begin, end) of them."""
    return {name: value[begin:end] for name, value in tokens.items()}


SHAPES: dict[str, dict[str, Any]] = {
    "real": {"nk": 2, "nv": 4, "dk": 128, "dv": 128},
    "real, fused": {"nk": 2, "nv": 4, "dk": 128, "dv": 128, "fused": True},
    "odd": {"nk": 3, "nv": 9, "dk": 20, "dv": 36, "slots": 2},
    "odd, fused": {"nk": 1, "nv": 3, "dk": 33, "dv": 7, "fused": True},
    "one by one": {"nk": 1, "nv": 1, "dk": 1, "dv": 1},
    "long keys": {"nk": 2, "nv": 2, "dk": 96, "dv": 16, "slots": 3},
    "wide values": {"nk": 1, "nv": 1, "dk": 16, "dv": 272},
    "plain": {"nk": 2, "nv": 2, "dk": 24, "dv": 48, "l2": False},
}


def close(got: Array, want: Array, bound: float = 1e-5) -> None:
    """Within `bound` of the largest number there is."""
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= bound * max(1.0, float(np.abs(want).max()))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130, 300])
@pytest.mark.parametrize("name", SHAPES)
def test_delta_rule(name: str, count: int) -> None:
    """All tokens in one run: y and S."""
    layer = Delta(**SHAPES[name])
    tokens = layer.tokens(count, count)
    y, s = layer.want(tokens)
    close(layer.run(tokens, count, threads=2), y)
    close(layer.matrices(count), s)


@pytest.mark.parametrize("decay", ["none", "strong", "both"])
@pytest.mark.parametrize("name", ["real", "odd"])
def test_decays_at_the_limits(name: str, decay: str) -> None:
    layer = Delta(**SHAPES[name])
    tokens = layer.tokens(200, 5, decay)
    y, s = layer.want(tokens)
    close(layer.run(tokens, 200), y)
    close(layer.matrices(200), s)


@pytest.mark.parametrize("name", SHAPES)
def test_state_after_reading_is_the_state_after_single_steps(name: str) -> None:
    """Bit for bit, as are the outputs."""
    one, many = Delta(**SHAPES[name]), Delta(**SHAPES[name])
    tokens = one.tokens(150, 8)
    steps = np.concatenate([one.run(part(tokens, i, i + 1), i + 1) for i in range(150)])
    assert np.array_equal(many.run(tokens, 150), steps)
    assert np.array_equal(many.matrices(150), one.matrices(150))
    close(steps, one.want(tokens)[0])


def rewind(total: int, slots: int) -> int:
    """The smallest number of tokens to go back to from `total`, by the contract."""
    return max(total // DELTA_CHUNK - slots + 1, 0) * DELTA_CHUNK


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_goes_back_by_a_smaller_length(slots: int) -> None:
    """As far as the contract allows; the state of a layer that never went further follows."""
    layer, plain = Delta(2, 4, 20, 24, slots), Delta(2, 4, 20, 24)
    kept, guesses = layer.tokens(260, 1), layer.tokens(100, 2)
    want = plain.run(kept, 260)
    for at, extra in ((50, 13), (60, 3), (100, 27), (130, 61), (64, 63), (128, 60), (190, 65), (120, 90)):
        layer.run(part(kept, 0, at), at)
        layer.run(part(guesses, 0, extra), at + extra)
        if at >= rewind(at + extra, slots):
            assert np.array_equal(layer.run(part(kept, at, 260), 260), want[at:]), (at, extra)
            assert np.array_equal(layer.matrices(260), plain.matrices(260))


def test_wrong_shapes_are_named() -> None:
    layer = Delta(1, 2, 8, 8)
    tokens = layer.tokens(3, 0)
    for name, change, words in (
        ("qkv", tokens["qkv"][:, :-1], "qkv must be"),
        ("a", tokens["a"][:2], "a and b must be"),
    ):
        with pytest.raises(Exception, match=f"GatedDelta: {words}"):
            layer.run({**tokens, name: change}, 3)
    with pytest.raises(Exception, match="GatedDelta: seqlens_k"):
        layer.run(tokens, 2)
    layer.state = layer.state[:, :-1]
    with pytest.raises(Exception, match=r"GatedDelta: state must be \[slots, words\]"):
        layer.run(tokens, 3)
    conv = Conv(8, 4, 2)
    with pytest.raises(Exception, match=r"CausalConv: history must be \[R, C\]"):
        conv.run(np.zeros((1, 8), F32), 1)
