"""The KV cache's buffers: growing keeps the rows and commits memory for rows alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gog_edge.engines.ort import cache as ort_cache
from gog_edge.engines.ort.cache import OrtKvCache, free_room
from gog_edge.errors import EngineError
from gog_edge.manifest import TensorSpec

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_growing_holds_one_buffer_twice_not_all() -> None:
    cache = cache_of(8, 2048)  # 16 buffers of 4 MiB
    cache.write(0, [np.ones((HEADS, 2048, DIM), np.float16)] * 16)
    before, seen, zeros = resident(), [], ort_cache._zeros

    class Watched(np.ndarray):  # type: ignore[type-arg]
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            seen.append(resident())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort_cache, "_zeros", lambda *a: zeros(*a).view(Watched))
        cache.reserve(4096, 2048)
    assert cache.capacity == 4096 and len(seen) == 16
    assert max(seen) - before < 12 * MIB


def test_a_new_cache_has_room_for_a_long_conversation_where_that_costs_nothing() -> None:
    def graph(inputs: tuple[str, ...], outputs: tuple[str, ...], memory: str = "cpu") -> Any:
        names = (dict.fromkeys(inputs), dict.fromkeys(outputs))
        return SimpleNamespace(inputs=names[0], outputs=names[1], device=SimpleNamespace(memory=memory))

    native, stock = ("logits",), ("logits", "present.0.key")
    assert free_room(graph(("seqlens_k",), native)) == (65536 if sys.platform.startswith("linux") else 4096)
    assert free_room(graph(("seqlens_k",), stock)) == 4096
    assert free_room(graph(("seqlens_k",), stock, "cuda")) == 1024
    assert free_room(graph(("write_indices", "attention_bias"), stock)) == 1024


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_rows_that_are_forgotten_give_their_memory_back() -> None:
    cache = cache_of(2, 65536)
    before = resident()
    cache.write(0, [np.ones((HEADS, 16384, DIM), np.float16)] * 4)
    assert resident() - before > 120 * MIB
    cache.forget(1003)
    assert resident() - before < 24 * MIB
    assert all((array == 1).all() for array in cache.read(0, 1003))
    cache.write(1003, [np.full((HEADS, 500, DIM), 2, np.float16)] * 4)
    assert all((array == 2).all() for array in cache.read(1003, 1503))
    cache.forget(0)
    assert resident() - before < 8 * MIB
