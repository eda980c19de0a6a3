"""The KV cache of ONNX Runtime sessions: one preallocated buffer a layer and side, bound as past AND present.

`GroupQueryAttention` and `TensorScatter` write the new rows in place when input and output are the same buffer, so
a step copies nothing. Where address space is free, buffers begin with room for a long conversation and nothing is ever
copied; elsewhere they grow by doubling: appending n tokens one by one costs O(n) copies in all.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.ort.device_rows import DeviceRows, DeviceShape
from gog_edge.engines.ort.graph import DTYPES, OrtGraph
from gog_edge.engines.ort.state import new_state
from gog_edge.errors import EngineError
from gog_edge.manifest import TensorSpec

PAST, PRESENT, NEW = "past_key_values.", "present.", "new."
NEW_BIAS = (
    "new_bias"  # an input of graphs that read the cache only, and whose outputs NEW + … are the rows that they add
)
_GRAIN = 64  # capacities are multiples of this many tokens
_FEW = 16  # tokens of a run that is likely to be followed by one like it
_ROWS = 2  # the axis of tokens: [1, kv_heads, capacity, …]
_SMALL_PAGES = hasattr(mmap, "MADV_NOHUGEPAGE")


def cache_names(graph: OrtGraph) -> list[str]:
    """The graph's cache inputs in its own order (keys, values, and their scales where the cache is int8)."""
    return [name for name in graph.inputs if name.startswith(PAST)]


def free_room(graph: OrtGraph) -> int:
    """Tokens that a new cache may have room for before they are there.

    Native operators on the host: 65,536, as untouched pages cost nothing and nothing else grows with the capacity
    (more is left to doubling: programs that lock all of their memory pay for room after all). Stock attention on the
    host has scratch of the capacity for every row of a run: 4,096. Else 1,024, which is memory.
    """
    if graph.device.memory != "cpu" or "attention_bias" in graph.inputs:  # a mask as wide as the cache
        return 1024
    native = not any(name.startswith(PRESENT) for name in graph.outputs)
    return 65536 if native and _SMALL_PAGES else 4096


@dataclass(frozen=True)
class BoundRun:
    """A run that is bound: it reads `inputs`, where they are kept, and writes `logits` [1, last_k, V] and `rows`."""

    binding: Any
    inputs: dict[str, NDArray[Any]]
    logits: NDArray[np.float32]
    rows: tuple[NDArray[Any], ...] = ()  # [1, kv_heads, s, …] of a graph that does not write the cache


class OrtKvCache:
    """Buffers [1, kv_heads, capacity, …], host or device, the state of recurrent layers, and the I/O bindings that
    hold them.

    `ready`: runs that need nothing but new values, by the number of their tokens, of their logits' rows, and the side
    of the state that they read.
    """

    def __init__(self, graph: OrtGraph, max_tokens: int, tokens: int, kernel: int = 0) -> None:
        self._graph = graph
        self._names = cache_names(graph)
        self._specs = [graph.inputs[name] for name in self._names]
        self._max = max_tokens
        self._host = graph.device.memory == "cpu"
        self.capacity = 0
        self._arrays: list[NDArray[Any]] = []  # host caches only: what the OrtValues show
        self._values: list[Any] = []
        self._logits: NDArray[np.float32] | None = None
        self.recurrent = new_state(graph, kernel)
        self.ready: dict[tuple[int, int, int], BoundRun] = {}
        self.addresses: list[int] = []  # of all buffers, rows first: host caches of native operators only
        self.reserve(max(tokens, 1), 0)

    @property
    def nbytes(self) -> int:
        rows = sum(
            int(np.dtype(DTYPES[s.dtype]).itemsize) * math.prod(self._shape(s, self.capacity)) for s in self._specs
        )
        return rows + self.recurrent.nbytes

    @property
    def seen(self) -> int:
        """See `RecurrentState.seen`."""
        return self.recurrent.seen

    @property
    def floor(self) -> int:
        """See `RecurrentState.floor`."""
        return self.recurrent.floor

    def state(self) -> list[NDArray[Any]]:
        """See `RecurrentState.state`."""
        return list(self.recurrent.get())

    def set_state(self, seen: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `RecurrentState.set_state`."""
        self.recurrent.set(seen, arrays)

    def reserve(self, tokens: int, keep: int) -> None:
        """Room for `tokens`; see `KvCache.reserve`."""
        if tokens <= self.capacity:
            return
        wanted = max(tokens, min(2 * self.capacity, self._max))
        capacity = -(-wanted // _GRAIN) * _GRAIN
        try:
            grow = self._grow_on_host if self._host else self._grow_on_device
            grow(capacity, keep)
        except (MemoryError, OSError, RuntimeError) as e:
            raise EngineError(f"no memory for a KV cache of {capacity} tokens ({e}); lower the context") from e
        self.capacity = capacity
        self.addresses = [*(array.ctypes.data for array in self._arrays), *self.recurrent.addresses]

    def keep_logits(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of logits [k, V] that lasts until the next run with this cache."""
        if len(logits) > _FEW:
            return logits.copy()
        if self._logits is None:
            self._logits = np.empty((1, _FEW, logits.shape[1]), np.float32)
        kept = self._logits[0, : len(logits)]
        kept[...] = logits
        return kept

    def forget(self, keep: int) -> None:
        """See `ForgetsRows.forget`; buffers of other memories stay as they are."""
        for array in self._arrays if _SMALL_PAGES else ():
            memory: Any = array.base
            while isinstance(memory, np.ndarray):
                memory = memory.base
            memory = memory.obj if isinstance(memory, memoryview) else memory
            if not isinstance(memory, mmap.mmap):
                return
            row, head = array.strides[_ROWS], array.strides[_ROWS - 1]
            for start in range(0, array.nbytes, head):
                first = -(-(start + keep * row) // mmap.PAGESIZE) * mmap.PAGESIZE
                last = (start + head) // mmap.PAGESIZE * mmap.PAGESIZE
                if first < last:
                    memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """See `KvCache.read`; host caches give views."""
        if self._host:
            return [array[0, :, start:stop] for array in self._arrays]
        return [self._rows.download(value, place, start, stop) for value, place in self._on_device()]

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `KvCache.write`."""
        if len(arrays) != len(self._values):
            raise EngineError(f"a KV cache of {len(self._values)} arrays can't take {len(arrays)}")
        rows = arrays[0].shape[1] if arrays and arrays[0].ndim > 1 else 0
        for spec, array in zip(self._specs, arrays):
            shape = self._shape(spec, self.capacity)
            if array.shape != (shape[1], rows, *shape[3:]) or start + rows > self.capacity:
                raise EngineError(f"rows of {list(array.shape)} do not fit a KV cache of {list(shape)}")
        if self._host:
            for target, array in zip(self._arrays, arrays):
                target[0, :, start : start + rows] = array
            return
        for (value, place), array in zip(self._on_device(), arrays):
            self._rows.upload(value, place, start, array)

    def bind(self, count: int, feeds: Mapping[str, NDArray[Any]], shape: tuple[int, int, int]) -> BoundRun:
        """Bind the inputs of a run of `count` tokens and logits of `shape`."""
        import onnxruntime

        if self._host and count <= _FEW:
            if self._logits is None:
                self._logits = np.empty((1, _FEW, shape[2]), np.float32)
            inputs = {n: np.array(a) for n, a in feeds.items()}
            run = BoundRun(self._new_binding(), inputs, self._logits[:, : shape[1]], self._new_rows(count))
            for name, array in run.inputs.items():  # read where they lie whenever the graph runs
                run.binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            self.ready[count, shape[1], self.recurrent.side] = run
        else:
            run = BoundRun(self._new_binding(), {}, np.empty(shape, np.float32), self._new_rows(count))
            for name, array in feeds.items():
                run.binding.bind_cpu_input(name, array)
        run.binding.bind_output("logits", "cpu", 0, np.float32, list(shape), run.logits.ctypes.data)
        for name, rows in zip(self._names, run.rows):
            output = NEW + name.removeprefix(PAST)
            run.binding.bind_output(output, "cpu", 0, rows.dtype.type, list(rows.shape), rows.ctypes.data)
        return run

    def append(self, run: BoundRun, past: int) -> None:
        """What the run added, behind the first `past` rows."""
        self.write(past, [rows[0] for rows in run.rows])

    def _new_rows(self, count: int) -> tuple[NDArray[Any], ...]:
        """Room for what a run of `count` tokens adds; none where it writes the cache itself."""
        if NEW_BIAS not in self._graph.inputs:
            return ()
        return tuple(np.empty(self._shape(spec, count), DTYPES[spec.dtype]) for spec in self._specs)

    @property
    def _rows(self) -> DeviceRows:
        return DeviceRows(self._graph.device_id)

    def _on_device(self) -> list[tuple[Any, DeviceShape]]:
        return [
            (value, DeviceShape(self._shape(spec, self.capacity), DTYPES[spec.dtype]))
            for value, spec in zip(self._values, self._specs)
        ]

    def _grow_on_host(self, capacity: int, keep: int) -> None:
        """One buffer after the other, each freed when it is copied: the peak is one buffer above what stays."""
        import onnxruntime

        fresh = [_zeros(self._shape(spec, capacity), DTYPES[spec.dtype]) for spec in self._specs]
        self._values, self.ready = [], {}  # they hold the old buffers
        for i in range(len(self._arrays)):
            fresh[i][0, :, :keep] = self._arrays[i][0, :, :keep]
            self._arrays[i] = fresh[i]
        self._arrays = fresh
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in fresh]

    def _grow_on_device(self, capacity: int, keep: int) -> None:
        """One buffer after the other, within the device."""
        import onnxruntime

        make, memory, device_id = onnxruntime.OrtValue, self._graph.device.memory, self._graph.device_id
        old = self._on_device()
        self._values, self.ready = [], {}  # the bindings hold the old buffers
        for i, spec in enumerate(self._specs):
            shape = DeviceShape(self._shape(spec, capacity), DTYPES[spec.dtype])
            fresh = make.ortvalue_from_shape_and_type(list(shape.shape), shape.dtype, memory, device_id)
            self._rows.clear(fresh, shape)
            if keep:
                self._rows.copy(fresh, shape, *old[i], keep)
                old[i] = (None, shape)  # freed before the next one is made
            self._values.append(fresh)

    @staticmethod
    def _shape(spec: TensorSpec, capacity: int) -> tuple[int, ...]:
        """The spec's shape with `capacity` rows; every other axis has a fixed size."""
        return tuple(capacity if axis == _ROWS else int(size) for axis, size in enumerate(spec.shape))

    def _new_binding(self) -> Any:
        binding = self._graph.session.io_binding()
        for name, value in zip(self._names, self._values):
            binding.bind_ortvalue_input(name, value)
            present = PRESENT + name.removeprefix(PAST)
            if present in self._graph.outputs:  # native operators write into their input and have no such output
                binding.bind_ortvalue_output(present, value)
        self.recurrent.bind(binding, self.recurrent.side)
        return binding


def _zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that the kernel hands out page by page, so that unused capacity costs no memory.

    In small pages: numpy asks for huge ones from 4 MiB on, and then the first rows of every head commit the whole
    buffer: a 2B policy growing from 4,096 tokens to 8,192 took 840 MiB and 1.7 s for it, in small pages 8 and 0.3.

    Raises:
        OSError, MemoryError: there is no room.
    """
    size = math.prod(shape) * int(np.dtype(dtype).itemsize)
    if size == 0 or not _SMALL_PAGES:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages does not know the advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    zeros: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
    return zeros
