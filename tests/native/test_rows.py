"""A row's bits do not depend on the rows beside it: not on their number, the cut into runs, or the threads.

Every operator is run row by row first; then the same rows in runs of 1 to 40, at several places, must come out equal
bit for bit. Rows that are read and rows that are written have arithmetics of their own, told apart by `prefill_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.native import packing
from gog_edge.native.contract import ACTIVATIONS, NORMS
from gog_edge.native.dispatch import gemm_rows_independent
from tests.native.graphs import needs_ops, session
from tests.native.test_gated_delta import Conv, Delta, part

pytestmark = needs_ops
F32 = np.float32
MOST = 40
Array = NDArray[Any]


def _ranges(count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Which of `count` rows are read: none, all, some in front, some behind, some between."""
    a, b = sorted(int(i) for i in rng.integers(0, count + 1, 2))
    return sorted({(0, 0), (0, count), (0, b), (a, count), (a, b)})


LINEAR = {
    "8 bits": {"bits": 8, "k": 520},
    "8 bits, groups, turned": {"bits": 8, "k": 520, "block": 176, "rotation": 64},
    "4 bits, blocks of 32": {"bits": 4, "k": 512, "block": 32},
    "4 bits, zero points": {"bits": 4, "k": 384, "block": 128, "zeros": True},
    "4 bits, no group to widen": {"bits": 4, "k": 512, "block": 512},
    "4 bits, exact": {"bits": 4, "k": 512, "block": 32, "exact": 1},
    "4 bits, K ends inside a block": {"bits": 4, "k": 300, "block": 64},
    "4 bits, turned": {"bits": 4, "k": 576, "block": 32, "rotation": 512},
}


def _linear(case: dict[str, Any], rng: np.random.Generator, n: int) -> tuple[dict[str, Array], dict[str, Any]]:
    """(constant inputs, attributes) of a gated linear with a norm, or of a plain one with bias and residual."""
    bits, k = case["bits"], case["k"]
    if bits == 8:
        block = case.get("block", k)
        scales8 = (rng.random((n, -(-k // block))) * 0.01).astype(F32)
        packed = packing.pack_w8(rng.integers(-127, 128, (n, k), np.int8), scales8, block=block)
    else:
        groups = -(-k // case["block"])
        zeros = rng.integers(0, 16, (n, groups), np.uint8) if case.get("zeros") else None
        scales = (rng.standard_normal((n, groups)) * 0.1).astype(np.float16)
        packed = packing.pack_w4(rng.integers(0, 16, (n, k), np.uint8), scales, zeros)
    inputs = {"weight": packed.weight, "scales": packed.scales, "zeros": packed.zero_points if bits == 4 else None}
    return inputs, {name: case[name] for name in ("exact", "rotation") if name in case}


@pytest.mark.parametrize("kind", ["gated", "plain"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str, kind: str) -> None:
    rng, case = np.random.default_rng(5), LINEAR[name]
    n, k, four = 160, case["k"], case["bits"] == 4
    fixed, attributes = _linear(case, rng, n)
    x = (rng.standard_normal((MOST, k)) * np.exp(rng.standard_normal((MOST, 1)))).astype(F32)
    columns = n // 2 if kind == "gated" else n - 5
    attributes |= {"N": columns, "norm": NORMS["rms"], "activation": ACTIVATIONS["silu_mul"]}
    residual, bias = rng.standard_normal((MOST, columns)).astype(F32), rng.standard_normal(n).astype(F32)
    if kind == "plain":
        attributes |= {"norm": NORMS["layer"], "activation": ACTIVATIONS["gelu"]}
    norm = rng.random(k).astype(F32)

    def inputs(begin: int, end: int, read: tuple[int, int]) -> list[tuple[str, Array | None]]:
        extra = kind == "plain"
        made: list[tuple[str, Array | None]] = [
            ("x", x[begin:end]), ("weight", fixed["weight"]), ("scales", fixed["scales"]),
            ("bias", bias if extra else None), ("residual", residual[begin:end] if extra else None),
            ("norm_weight", norm), ("norm_bias", norm if extra else None),
        ]  # fmt: skip
        return [*made, ("zeros", fixed["zeros"]), ("prefill_rows", np.array(read, np.int32))] if four else made

    for threads in (1, 2, 3):
        made = session(f"LinearW{case['bits']}", inputs(0, 1, (0, 0)), threads, **attributes)

        def run(begin: int, end: int, read: tuple[int, int], made: Any = made) -> Array:
            feeds = {name: value for name, value in inputs(begin, end, read) if value is not None}
            return np.asarray(made.run(None, feeds)[0])

        if threads == 1:
            written = np.concatenate([run(i, i + 1, (0, 0)) for i in range(MOST)])
            read_ = np.concatenate([run(i, i + 1, (0, 1)) for i in range(MOST)])
            assert np.array_equal(written, read_) == (not four or "exact" in attributes or "no group" in name)
        for count in range(1, MOST + 1):
            for first in {0, MOST - count}:
                for begin, end in _ranges(count, rng):
                    want = written[first : first + count].copy()
                    want[begin:end] = read_[first : first + count][begin:end]
                    assert np.array_equal(run(first, first + count, (begin, end)), want), (threads, first, count, begin)


PASTS = [
    0,
    1,
    7,
    15,
    16,
    17,
    47,
    63,
    64,
    100,
    113,
    125,
    127,
    128,
    129,
    200,
    241,
    255,
    256,
    257,
    383,
    500,
    511,
    513,
    760,
]
DECODERS = {
    "grouped": {"heads": 4, "kv": 2, "hd": 32},
    "seven heads a group, norms": {"heads": 7, "kv": 1, "hd": 128, "norms": True},
    "two groups of five": {"heads": 10, "kv": 2, "hd": 80},
    "no whole vectors": {"heads": 2, "kv": 2, "hd": 24},
    "thirty-two heads a group": {"heads": 32, "kv": 1, "hd": 16},
}


class Cached:
    """A cache of one layer with made-up rows, and 40 tokens to put behind any number of them."""

    def __init__(self, heads: int, kv: int, hd: int, int8: bool, norms: bool = False) -> None:
        rng = np.random.default_rng(heads * hd)
        self.heads, self.kv, self.name = heads, kv, "DecoderAttentionI8" if int8 else "DecoderAttentionF16"
        shape = (1, kv, 832, hd)
        half = [rng.standard_normal(shape).astype(np.float16) for _ in range(2)]
        byte = [rng.integers(-127, 128, shape, np.int8) for _ in range(2)]
        self.caches = byte if int8 else half
        self.scales = [(rng.random(shape[:3]) * 0.02).astype(F32) for _ in range(2)] if int8 else [None, None]
        self.qkv = rng.standard_normal((MOST, (heads + 2 * kv) * hd)).astype(F32) * 2
        angle = rng.random((MOST, hd // 2)) * 6
        self.cos, self.sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
        self.norms = [(rng.random(hd) + 0.5).astype(F32) if norms else None for _ in range(2)]

    def inputs(self, past: int, first: int, count: int, read: tuple[int, int]) -> list[tuple[str, Array | None]]:
        rows = slice(first, first + count)
        return [
            ("qkv", self.qkv[rows]), ("cos", self.cos[rows]), ("sin", self.sin[rows]),
            ("length", np.array([past + first + count - 1], np.int32)),
            ("keys", self.keys), ("values", self.values), ("q_norm", self.norms[0]), ("k_norm", self.norms[1]),
            ("key_scale", self.key_scale), ("value_scale", self.value_scale),
            ("prefill_rows", np.array(read, np.int32)),
        ]  # fmt: skip

    def fresh(self) -> None:
        """As it was before the last run."""
        self.keys, self.values = (cache.copy() for cache in self.caches)
        self.key_scale, self.value_scale = (None if s is None else s.copy() for s in self.scales)

    def open(self, threads: int) -> Any:
        self.fresh()
        return session(self.name, self.inputs(0, 0, 1, (0, 0)), threads, heads=self.heads, kv_heads=self.kv)

    def run(self, made: Any, past: int, first: int, count: int, read: tuple[int, int]) -> Array:
        """y of tokens [first, first + count) of the 40, which begin at position `past`."""
        given = self.inputs(past, first, count, read)
        return np.asarray(made.run(None, {name: value for name, value in given if value is not None})[0])


def _cuts(rng: np.random.Generator) -> Iterator[list[int]]:
    for count in range(1, MOST + 1):
        yield [count, *([MOST - count] if count < MOST else [])]
    for _ in range(6):
        yield [int(n) for n in np.diff([0, *np.unique(rng.integers(1, MOST, 7)), MOST])]


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "i8"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_attention(name: str, int8: bool) -> None:
    """Also the cache: what a run writes into it is the same however the run was cut."""
    rng, layer = np.random.default_rng(9), Cached(**DECODERS[name], int8=int8)  # type: ignore[arg-type]
    sessions = {threads: layer.open(threads) for threads in (1, 2, 3)}
    for number, past in enumerate(PASTS):
        kinds = {}
        for kind in (0, 1):
            layer.fresh()
            kinds[kind] = np.concatenate([layer.run(sessions[1], past, i, 1, (0, kind)) for i in range(MOST)])
        rows = [layer.keys, layer.values, layer.key_scale, layer.value_scale]
        for cut in _cuts(rng):
            threads = 1 + (number + cut[0]) % 3
            layer.fresh()
            at = 0
            for count in cut:
                ranges = _ranges(count, rng)
                begin, end = ranges[int(rng.integers(len(ranges)))]
                want = kinds[0][at : at + count].copy()
                want[begin:end] = kinds[1][at : at + count][begin:end]
                got = layer.run(sessions[threads], past, at, count, (begin, end))
                assert np.array_equal(got, want), (past, at, count, begin, end, threads)
                at += count
            stored = [layer.keys, layer.values, layer.key_scale, layer.value_scale]
            assert all(a is b is None or np.array_equal(a, b) for a, b in zip(stored, rows)), (past, cut)


DELTAS: dict[str, dict[str, Any]] = {
    "two heads a key": {"nk": 2, "nv": 4, "dk": 32, "dv": 32},
    "the real size": {"nk": 1, "nv": 1, "dk": 128, "dv": 128, "slots": 2},
    "no whole vectors": {"nk": 3, "nv": 9, "dk": 21, "dv": 13, "fused": True},
}


@pytest.mark.parametrize("name", DELTAS)
def test_linear_attention(name: str) -> None:
    """Behind any number of tokens, so that the 40 lie on both sides of a border; also the state."""
    rng = np.random.default_rng(9)
    layer, conv = Delta(**DELTAS[name]), Conv(48, 4, 3)
    for number, past in enumerate((0, 1, 23, 24, 30, 47, 63, 64, 65, 127, 200)):
        total = past + MOST
        tokens, x = layer.tokens(total, past), rng.standard_normal((total, 48)).astype(F32)
        layer.run(part(tokens, 0, past), past)
        conv.run(x[:past], past)
        begun, kept = layer.state.copy(), conv.history.copy()
        rows = [np.concatenate([layer.run(part(tokens, i, i + 1), i + 1) for i in range(past, total)]),
                np.concatenate([conv.run(x[i : i + 1], i + 1) for i in range(past, total)])]  # fmt: skip
        states = [layer.matrices(total), conv.history.copy()]
        for cut in _cuts(rng):
            threads = 1 + (number + cut[0]) % 3
            layer.state[:], conv.history[:] = begun, kept
            at = past
            for count in cut:
                delta, y = layer.run(part(tokens, at, at + count), at + count, threads), x[at : at + count]
                assert np.array_equal(delta, rows[0][at - past :][:count]), (past, at, count, threads)
                assert np.array_equal(conv.run(y, at + count, threads), rows[1][at - past :][:count])
                at += count
            assert np.array_equal(layer.matrices(total), states[0]) and np.array_equal(conv.history, states[1])


@pytest.mark.parametrize("precision", [0, 1, 2])
def test_a_window_of_vision_attention_does_not_depend_on_the_others(precision: int) -> None:
    """Images are encoded one by one and whole; inside one, no window's bits depend on the rest."""
    rng, heads, hd = np.random.default_rng(3), 2, 64
    lengths = [64, 1, 17, 300, 40, 64, 129]
    n, longest = sum(lengths), max(lengths)
    qkv, angle = rng.standard_normal((n, 3 * heads * hd)).astype(F32), rng.random((n, hd // 2)) * 6
    cos, sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
    begins = np.cumsum([0, *lengths])

    def run(first: int, last: int, threads: int) -> Array:
        """y of windows [first, last)."""
        rows = slice(begins[first], begins[last])
        gather, mask = np.zeros((last - first, longest), np.int64), np.zeros((last - first, longest), np.int32)
        for i, length in enumerate(lengths[first:last]):
            gather[i, :length] = np.arange(length) + begins[first + i] - begins[first]
            mask[i, :length] = 1
        given = {"qkv": qkv[rows], "cos": cos[rows], "sin": sin[rows], "gather": gather, "mask": mask}
        made = session("VisionAttention", list(given.items()), threads, heads=heads, precision=precision)
        return np.asarray(made.run(None, given)[0])

    whole = run(0, len(lengths), 1)
    for first in range(len(lengths)):
        for last in range(first + 1, len(lengths) + 1):
            got = run(first, last, 1 + last % 3)
            assert np.array_equal(got, whole[begins[first] : begins[last]]), (first, last)


def test_float_matrices_are_tried_before_they_are_trusted() -> None:
    """ONNX Runtime's Gemm, of which native bundles of fp32 are made beside the attention."""
    assert gemm_rows_independent()
