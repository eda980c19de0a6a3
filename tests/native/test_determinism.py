"""The same bits whatever the number of threads: work is cut by shapes alone, and no sum crosses a cut."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.native import packing
from tests.native.graphs import needs_ops, run

pytestmark = needs_ops
F32 = np.float32


@pytest.mark.parametrize("rows", [1, 6, 60])
@pytest.mark.parametrize("bits", [8, 4])
def test_linear(rows: int, bits: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 1024), F32)
    packed = (
        packing.pack_w8(rng.integers(-127, 128, (256, 1024), np.int8), np.full(256, 0.01, F32))
        if bits == 8
        else packing.pack_w4(rng.integers(0, 16, (256, 1024), np.uint8), np.full((256, 32), 0.01, np.float16))
    )
    inputs = {"x": x, "weight": packed.weight, "scales": packed.scales}
    results = [run(f"LinearW{bits}", inputs, threads, N=256) for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("precision", [0, 1, 2])
def test_vision(precision: int) -> None:
    rng = np.random.default_rng(1)
    inputs = {
        "qkv": rng.standard_normal((400, 3 * 2 * 32)).astype(F32),
        "cos": np.ones((400, 16), F32),
        "sin": np.zeros((400, 16), F32),
    }
    results = [run("VisionAttention", inputs, threads, heads=2, precision=precision) for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("s", [1, 50])
def test_decoder(s: int) -> None:
    rng = np.random.default_rng(2)
    cache = rng.standard_normal((1, 2, 700, 32)).astype(np.float16)

    def once(threads: int) -> NDArray[np.float32]:
        inputs = {
            "qkv": np.random.default_rng(3).standard_normal((s, 8 * 32)).astype(F32),
            "cos": np.ones((s, 16), F32),
            "sin": np.zeros((s, 16), F32),
            "length": np.array([649], np.int32),
            "keys": cache.copy(),
            "values": cache.copy(),
        }
        return run("DecoderAttentionF16", inputs, threads, heads=4, kv_heads=2)

    results = [once(threads) for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
