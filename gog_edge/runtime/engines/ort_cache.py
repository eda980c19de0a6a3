"""The KV cache of ONNX Runtime sessions: one preallocated buffer a layer and side, bound as past AND present.

`GroupQueryAttention` and `TensorScatter` write the new rows in place when input and output are the same buffer, so
a step copies nothing. Buffers grow by doubling: appending n tokens one by one costs O(n) copies in all.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError
from gog_edge.manifest import TensorSpec
from gog_edge.runtime.engines.ort_graph import DTYPES, OrtGraph

PAST, PRESENT = "past_key_values.", "present."
_GRAIN = 64  # capacities are multiples of this many tokens
_ROWS = 2  # the axis of tokens: [1, kv_heads, capacity, …]


def cache_names(graph: OrtGraph) -> list[str]:
    """The graph's cache inputs in its own order (keys, values, and their scales where the cache is int8)."""
    return [name for name in graph.inputs if name.startswith(PAST)]


class OrtKvCache:
    """Buffers [1, kv_heads, capacity, …], host or device, and the I/O binding that holds them."""

    def __init__(self, graph: OrtGraph, max_tokens: int, tokens: int) -> None:
        self._graph = graph
        self._names = cache_names(graph)
        self._specs = [graph.inputs[name] for name in self._names]
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
        return sum(
            int(np.dtype(DTYPES[s.dtype]).itemsize) * math.prod(self._shape(s, self._capacity)) for s in self._specs
        )

    def reserve(self, tokens: int, keep: int) -> None:
        """Room for `tokens`; see `KvCache.reserve`."""
        if tokens <= self._capacity:
            return
        wanted = max(tokens, min(2 * self._capacity, self._max))
        capacity = -(-wanted // _GRAIN) * _GRAIN
        kept = self.read(0, keep) if keep else []
        try:
            self._allocate(capacity)
        except (MemoryError, OSError, RuntimeError) as e:
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

        make = onnxruntime.OrtValue
        self._values = []  # the old buffers go first
        if self._host:
            self._arrays = [_zeros(self._shape(spec, capacity), DTYPES[spec.dtype]) for spec in self._specs]
            self._values = [make.ortvalue_from_numpy(array) for array in self._arrays]
        else:
            memory, device_id = self._graph.device.memory, self._graph.device_id
            arrays = (np.zeros(self._shape(spec, capacity), DTYPES[spec.dtype]) for spec in self._specs)
            self._values = [make.ortvalue_from_numpy(array, memory, device_id) for array in arrays]

    @staticmethod
    def _shape(spec: TensorSpec, capacity: int) -> tuple[int, ...]:
        """The spec's shape with `capacity` rows; every other axis has a fixed size."""
        return tuple(capacity if axis == _ROWS else int(size) for axis, size in enumerate(spec.shape))

    def _bind(self) -> None:
        self.binding = self._graph.session.io_binding()
        for name, value in zip(self._names, self._values):
            self.binding.bind_ortvalue_input(name, value)
            present = PRESENT + name.removeprefix(PAST)
            if present in self._graph.outputs:  # native operators write into their input and have no such output
                self.binding.bind_ortvalue_output(present, value)


def _zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that the kernel hands out page by page, so that unused capacity costs no memory.

    In small pages: numpy asks for huge ones from 4 MiB on, and then the first rows of every head commit the whole
    buffer: a 2B policy growing from 4,096 tokens to 8,192 took 840 MiB and 1.7 s for it, in small pages 8 and 0.3.

    Raises:
        OSError, MemoryError: there is no room.
    """
    size = math.prod(shape) * int(np.dtype(dtype).itemsize)
    if size == 0 or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages does not know the advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    zeros: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
    return zeros
