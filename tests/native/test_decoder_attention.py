"""DecoderAttention against numpy: prefill, decode, causality, the cache written in place.

Both sides attend over the rows as they are stored, except that the reference adds the new rows unrounded: f16
rows are off by 2^-11 of their size, int8 rows by 1/254 of their peak, and prefill works in bf16 (2^-9).  A mean
of value rows is off by no more than that, and by as much again for the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native import reference
from tests.native.graphs import needs_ops, session

pytestmark = needs_ops
F32 = np.float32


@dataclass
class Decoder:
    """A cache of one layer and the session that fills it."""

    heads: int
    kv: int
    hd: int
    capacity: int
    bytes_: bool = False
    norms: bool = False
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        shape = (1, self.kv, self.capacity, self.hd)
        kind = np.int8 if self.bytes_ else np.float16
        self.keys, self.values = np.zeros(shape, kind), np.zeros(shape, kind)
        scales = (1, self.kv, self.capacity)
        self.key_scale = np.zeros(scales, F32) if self.bytes_ else None
        self.value_scale = np.zeros(scales, F32) if self.bytes_ else None
        norm = (self.rng.random(self.hd) + 0.5).astype(F32)
        self.q_norm, self.k_norm = (norm, norm[::-1].copy()) if self.norms else (None, None)
        self.past = 0
        self.session: object = None

    def read(self, cache: NDArray[np.generic], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Cached rows so far, [kv, past, hd] as f32."""
        rows = cache[0, :, : self.past].astype(F32)
        return rows if scale is None else rows * scale[0, :, : self.past, None]

    def step(self, s: int, read: bool = False) -> float:
        """Append `s` tokens, written or `read`; the largest error of y over the largest |v|, cache rows checked."""
        qkv = self.rng.standard_normal((s, (self.heads + 2 * self.kv) * self.hd)).astype(F32)
        angle = self.rng.random((s, self.hd // 2)) * 6
        cos, sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
        total = self.past + s
        inputs = {
            "qkv": qkv, "cos": cos, "sin": sin, "length": np.array([total - 1], np.int32),
            "keys": self.keys, "values": self.values, "q_norm": self.q_norm, "k_norm": self.k_norm,
            "key_scale": self.key_scale, "value_scale": self.value_scale,
            "prefill_rows": np.array([0, s if read else 0], np.int32),
        }  # fmt: skip
        want, new_keys, new_values = reference.decoder_attention(
            qkv, cos, sin, self.read(self.keys, self.key_scale), self.read(self.values, self.value_scale),
            self.heads, q_norm=self.q_norm, k_norm=self.k_norm, epsilon=1e-6,
        )  # fmt: skip
        shapes = [(n, None if v is None else v.reshape(v.shape)) for n, v in inputs.items()]
        name = "DecoderAttentionI8" if self.bytes_ else "DecoderAttentionF16"
        made = session(name, shapes, self.threads, heads=self.heads, kv_heads=self.kv, epsilon=1e-6)
        got = made.run(None, {n: v for n, v in inputs.items() if v is not None})[0]
        before, self.past = self.past, total
        for cache, scale, new in (
            (self.keys, self.key_scale, new_keys),
            (self.values, self.value_scale, new_values),
        ):
            stored = self.read(cache, scale)[:, before:]
            step = np.abs(new).max(axis=-1, keepdims=True) / (254 if self.bytes_ else 2048)
            assert (np.abs(stored - new) <= step * 1.01 + 1e-7).all(), "cache row"
            assert not cache[0, :, total:].any(), "rows beyond the new ones were touched"
        assert got.shape == want.shape
        return float(np.abs(got - want).max() / np.abs(new_values).max())


@pytest.mark.parametrize("heads, kv, hd", [(4, 4, 64), (16, 8, 128), (8, 1, 64), (7, 1, 128), (12, 2, 80), (3, 3, 8)])
@pytest.mark.parametrize("bytes_", [False, True])
def test_prefill_then_decode_then_append(heads: int, kv: int, hd: int, bytes_: bool) -> None:
    decoder = Decoder(heads, kv, hd, 300, bytes_, norms=heads == 16)
    tolerance = 0.02
    for s, read in ((37, True), (1, False), (1, True), (2, False), (5, False), (100, True), (1, False), (9, True)):
        assert decoder.step(s, read) < tolerance, f"s = {s} after {decoder.past - s}"


def test_decode_is_exact_to_the_cache() -> None:
    decoder = Decoder(8, 2, 64, 64)
    assert decoder.step(1) < 1e-3
    for _ in range(20):
        assert decoder.step(1) < 1e-3  # f16 rounding of the new row only: no bf16 on this path


@pytest.mark.parametrize("s", [*range(1, 12), 16, 33, 64, 65])
@pytest.mark.parametrize("read", [False, True])
def test_token_counts(s: int, read: bool) -> None:
    assert Decoder(4, 2, 32, 80, seed=s).step(s, read) < (0.02 if read else 1e-3)


@pytest.mark.parametrize("bytes_", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_long_cache_is_split_and_merged(bytes_: bool, threads: int) -> None:
    decoder = Decoder(2, 1, 32, 800, bytes_, threads=threads)
    assert decoder.step(790, read=True) < 0.02
    assert decoder.step(1) < 0.02
    assert decoder.step(3) < 0.02


def test_a_full_cache_works_and_one_more_is_refused() -> None:
    decoder = Decoder(2, 1, 16, 8)
    assert decoder.step(8, read=True) < 0.02
    with pytest.raises(Exception, match="capacity"):
        decoder.step(1)


def test_no_token_sees_the_future() -> None:
    """Changing the last token's key and value must not change the outputs before it."""
    outputs = []
    for change in (0.0, 5.0):
        rng = np.random.default_rng(3)
        qkv = rng.standard_normal((40, 4 * 32)).astype(F32)
        qkv[-1, 64:] += change
        inputs = {
            "qkv": qkv, "cos": np.ones((40, 16), F32), "sin": np.zeros((40, 16), F32),
            "length": np.array([39], np.int32), "keys": np.zeros((1, 1, 40, 32), np.float16),
            "values": np.zeros((1, 1, 40, 32), np.float16),
        }  # fmt: skip
        made = session("DecoderAttentionF16", list(inputs.items()), heads=2, kv_heads=1)
        outputs.append(made.run(None, inputs)[0])
    assert np.array_equal(outputs[0][:-1], outputs[1][:-1])
    assert not np.array_equal(outputs[0][-1], outputs[1][-1])
