"""The KV cache of ONNX Runtime sessions: one preallocated buffer a layer and side, bound as past AND present.

`GroupQueryAttention` and `TensorScatter` write the new rows in place when input and output are the same buffer, so
a step copies nothing. Buffers grow by doubling: appending n tokens one by one costs O(n) copies in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError
from gog_edge.runtime.engines.ort_graph import DTYPES, OrtGraph

PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
SIDES = ("key", "value")
_GRAIN = 64  # capacities are multiples of this many tokens


def cache_names(layers: int) -> list[tuple[str, str]]:
    """(input, output) names: key and value of layer 0, then of layer 1 …"""
    return [(PAST.format(i, s), PRESENT.format(i, s)) for i in range(layers) for s in SIDES]


class OrtKvCache:
    """Buffers [1, kv_heads, capacity, head_dim], host or device, and the I/O binding that holds them."""

    def __init__(self, graph: OrtGraph, layers: int, max_tokens: int, tokens: int) -> None:
        self._graph = graph
        self._names = cache_names(layers)
        spec = graph.inputs[self._names[0][0]]
        self._dtype = DTYPES[spec.dtype]
        self._heads, self._dim = int(spec.shape[1]), int(spec.shape[3])
        self._max = max_tokens
        self._host = graph.device.memory == "cpu"
        self._capacity = 0
        self._arrays: list[NDArray[Any]] = []  # host caches only: what the OrtValues show
        self._values: list[Any] = []
        self.binding: Any = None
        self.reserve(max(tokens, 1), 0)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._capacity * len(self._names) * self._heads * self._dim * int(np.dtype(self._dtype).itemsize)

    def reserve(self, tokens: int, keep: int) -> None:
        """Room for `tokens`; see `KvCache.reserve`."""
        if tokens <= self._capacity:
            return
        wanted = max(tokens, min(2 * self._capacity, self._max))
        capacity = -(-wanted // _GRAIN) * _GRAIN
        kept = self.read(0, keep) if keep else []
        try:
            self._allocate(capacity)
        except (MemoryError, RuntimeError) as e:
            raise EngineError(f"no memory for a KV cache of {capacity} tokens ({e}); lower the context") from e
        self._capacity = capacity
        self._bind()
        if kept:
            self.write(0, kept)

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """See `KvCache.read`; host caches give views."""
        return [array[0, :, start:stop] for array in self._host_arrays()]

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `KvCache.write`."""
        if len(arrays) != len(self._values):
            raise EngineError(f"a KV cache of {len(self._values)} arrays can't take {len(arrays)}")
        targets = self._host_arrays()
        for target, array in zip(targets, arrays):
            target[0, :, start : start + array.shape[1]] = array
        if not self._host:
            for value, target in zip(self._values, targets):
                value.update_inplace(target)

    def _host_arrays(self) -> list[NDArray[Any]]:
        return self._arrays if self._host else [np.array(value.numpy()) for value in self._values]

    def _allocate(self, capacity: int) -> None:
        import onnxruntime

        shape = (1, self._heads, capacity, self._dim)
        make = onnxruntime.OrtValue
        if self._host:
            # zeros come from the kernel page by page: unused capacity costs no memory
            self._arrays = [np.zeros(shape, self._dtype) for _ in self._names]
            self._values = [make.ortvalue_from_numpy(array) for array in self._arrays]
        else:
            self._values = []  # the old buffers go first
            zeros = np.zeros(shape, self._dtype)
            memory, device_id = self._graph.device.memory, self._graph.device_id
            self._values = [make.ortvalue_from_numpy(zeros, memory, device_id) for _ in self._names]

    def _bind(self) -> None:
        self.binding = self._graph.session.io_binding()
        for (past, present), value in zip(self._names, self._values):
            self.binding.bind_ortvalue_input(past, value)
            self.binding.bind_ortvalue_output(present, value)
