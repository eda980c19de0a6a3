"""The KV cache's buffers: growing keeps the rows and commits memory for rows alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gog_edge.errors import EngineError
from gog_edge.manifest import TensorSpec
from gog_edge.runtime.engines import ort_cache
from gog_edge.runtime.engines.ort_cache import OrtKvCache

HEADS, DIM, MIB = 8, 128, 1 << 20


class Binding:
    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert name.startswith("past_key_values.")


def cache_of(layers: int, tokens: int) -> OrtKvCache:
    names = [f"past_key_values.{layer}.{side}" for layer in range(layers) for side in ("key", "value")]
    graph: Any = SimpleNamespace(
        inputs={name: TensorSpec(name, "float16", (1, HEADS, "cap", DIM)) for name in names},
        outputs={},
        device=SimpleNamespace(memory="cpu"),
        session=SimpleNamespace(io_binding=Binding),
    )
    return OrtKvCache(graph, 1 << 20, tokens)


def test_growing_keeps_the_rows_and_doubles() -> None:
    cache = cache_of(1, 64)
    rows = [np.random.default_rng(n).normal(size=(HEADS, 40, DIM)).astype(np.float16) for n in range(2)]
    cache.write(0, rows)
    cache.reserve(65, 40)
    assert cache.capacity == 128
    for kept, given in zip(cache.read(0, 40), rows):
        np.testing.assert_array_equal(kept, given)
    assert not any(array.any() for array in cache.read(40, 128))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_unused_capacity_costs_no_memory() -> None:
    before = resident()
    cache = cache_of(2, 65536)
    assert cache.nbytes == 512 * MIB
    cache.write(0, [np.ones((HEADS, 16, DIM), np.float16)] * 4)
    assert resident() - before < 32 * MIB  # a huge page at the start of every head would be 64 MiB


def test_no_room_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(1, 64)

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ort_cache.mmap, "mmap", full)
    monkeypatch.setattr(ort_cache.np, "zeros", full)
    with pytest.raises(EngineError, match=r"no memory for a KV cache of 128 tokens .*lower the context"):
        cache.reserve(128, 0)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
