"""Device memory of the TensorRT engine: lanes (a stream and its lock), packed inputs, KV caches, features."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop.gpu import GpuMemory
from gog_edge.engines.base import F32, Features
from gog_edge.engines.tensorrt.cuda import CudaGpu
from gog_edge.engines.tensorrt.plan import PlanTensor, Shape, TrtContext
from gog_edge.errors import EngineError
from gog_edge.manifest import TensorSpec

ALIGN = 256
_ROWS = 2  # the axis of tokens: [1, kv_heads, capacity, head_dim]


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to what TensorRT wants addresses to be multiples of."""
    return -(-nbytes // ALIGN) * ALIGN


def nbytes_of(shape: Shape, dtype: str) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)


class Lane:
    """A stream and what belongs to it. Whoever puts work on the stream holds the lock.

    Memory that is collected is freed at the next `use`, not at once: collection may strike while a graph is captured,
    and freeing would break the capture.
    """

    def __init__(self, gpu: CudaGpu, stream: Any) -> None:
        self.gpu, self.stream = gpu, stream
        self.lock = threading.RLock()
        self._dead: list[Any] = []
        self._closed = False

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Hold the lane.

        Raises:
            EngineError: the engine is closed.
        """
        with self.lock:
            if self._closed:
                raise EngineError("the engine is closed")
            self._sweep()
            yield

    def bury(self, *things: Any) -> None:
        """Close these (each has `close`) when the lane is next used or closed. From any thread, at any moment."""
        self.bury_all(list(things))

    def bury_all(self, things: list[Any]) -> None:
        """`bury` for what a list holds by then; the newest goes first."""
        self._dead.extend(things)
        if self._closed:
            self._sweep()

    def close(self) -> None:
        """Wait for the stream and free what is dead. Idempotent."""
        with self.lock:
            if not self._closed:
                self._closed = True
                self.gpu.synchronize(self.stream)
            self._sweep()

    def _sweep(self) -> None:
        while self._dead:
            self._dead.pop().close()


class CapturedGraph:
    """A CUDA graph with the context that it was captured from (it must outlive the graph)."""

    def __init__(self, gpu: CudaGpu, graph: Any, context: TrtContext) -> None:
        self._gpu, self.graph, self._context = gpu, graph, context

    def close(self) -> None:
        self._gpu.destroy(self.graph)
        self._context.close()


class Packed:
    """Inputs side by side in one device buffer and its page-locked twin on the host: one copy moves them all.

    Places depend on the shapes only, so runs of equal shapes see equal addresses.
    """

    def __init__(self, gpu: CudaGpu, nbytes: int) -> None:
        self.device = gpu.allocate(nbytes)
        try:
            self.host = gpu.pin(nbytes)
        except EngineError:
            self.device.close()
            raise
        self.nbytes = nbytes

    @staticmethod
    def places(tensors: Mapping[str, tuple[Shape, str]]) -> tuple[dict[str, int], int]:
        """Offset of each tensor (shape, dtype), and bytes in all."""
        offsets, at = {}, 0
        for name, (shape, dtype) in tensors.items():
            offsets[name] = at
            at += aligned(nbytes_of(shape, dtype))
        return offsets, at

    def view(self, offset: int, shape: Shape, dtype: str) -> NDArray[Any]:
        """The host twin of a tensor."""
        flat = self.host.array[offset : offset + nbytes_of(shape, dtype)]
        return flat.view(dtype).reshape(shape)

    def close(self) -> None:
        self.device.close()
        self.host.close()


class Logits:
    """Where the logits of one session arrive: [rows, vocab] float32 on the device and on the host."""

    def __init__(self, gpu: CudaGpu, rows: int, vocab: int) -> None:
        self.rows = rows
        self.packed = Packed(gpu, aligned(rows * vocab * 4))
        self.host: NDArray[np.float32] = self.packed.view(0, (rows, vocab), "float32")

    @property
    def address(self) -> int:
        return self.packed.device.address

    def close(self) -> None:
        self.packed.close()


class TrtKvCache:
    """Keys and values of one session in one piece of device memory, fixed in size, plus what is captured over it.

    The graph's input and output of each layer lie at the same address: the engine writes new rows in place.
    """

    def __init__(self, lane: Lane, specs: Sequence[TensorSpec], capacity: int, rows: int, vocab: int) -> None:
        """Allocate and zero. `specs`: the cache inputs in the graph's order; `rows`: of logits.

        Raises:
            EngineError: there is no memory for it.
        """
        self._lane, self._capacity, self._vocab = lane, capacity, vocab
        self._shapes = [tuple(capacity if a == _ROWS else int(d) for a, d in enumerate(s.shape)) for s in specs]
        self._dtypes = [s.dtype for s in specs]
        sizes = [aligned(nbytes_of(shape, s.dtype)) for shape, s in zip(self._shapes, specs)]
        total = sum(sizes)
        with lane.use():
            try:
                memory = lane.gpu.allocate(total)
            except EngineError as e:
                raise EngineError(
                    f"no memory for a KV cache of {capacity} tokens ({total >> 20} MiB; {e}): close other sessions, or "
                    "export engines with a smaller --capacity"
                ) from e
            self._owned: list[Any] = [memory]
            weakref.finalize(self, lane.bury_all, self._owned)
            # rows that were never written are masked, but 0 * NaN is NaN: stale bits must not be there
            lane.gpu.clear(memory.address, total, lane.stream)
            lane.gpu.synchronize(lane.stream)
            self.logits = Logits(lane.gpu, rows, vocab)
            self._owned.append(self.logits)
        self._nbytes = total
        starts = [memory.address + sum(sizes[:i]) for i in range(len(sizes))]
        self.addresses = {s.name: start for s, start in zip(specs, starts)}
        self._starts = starts
        self.graphs: dict[tuple[int, int], CapturedGraph] = {}
        self.seen: dict[tuple[int, int], int] = {}

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def reserve(self, tokens: int, keep: int) -> None:
        """See `KvCache.reserve`: an engine's cache can't grow."""
        if tokens > self._capacity:
            raise EngineError(
                f"the engine's KV cache holds {self._capacity} tokens, {tokens} are needed: build engines with "
                f"--capacity {aligned(tokens)}, or lower max_context"
            )

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """See `KvCache.read`; copies."""
        self._check(start, stop)
        arrays = [
            np.empty((shape[1], stop - start, *shape[3:]), dtype) for shape, dtype in zip(self._shapes, self._dtypes)
        ]
        with self._lane.use():
            for index, array in enumerate(arrays):
                for head, address in self._heads(index, start):
                    self._lane.gpu.download(array[head], address, self._lane.stream)
            self._lane.gpu.synchronize(self._lane.stream)
        return arrays

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `KvCache.write`."""
        if len(arrays) != len(self._shapes):
            raise EngineError(f"a KV cache of {len(self._shapes)} arrays can't take {len(arrays)}")
        self._check(start, start + (arrays[0].shape[1] if arrays else 0))
        ready = []
        for shape, dtype, array in zip(self._shapes, self._dtypes, arrays):
            if array.shape != (shape[1], arrays[0].shape[1], *shape[3:]):
                raise EngineError(f"rows of {array.shape} do not fit a KV cache of {shape}")
            ready.append(np.ascontiguousarray(array, dtype))
        with self._lane.use():
            for index, array in enumerate(ready):
                for head, address in self._heads(index, start):
                    self._lane.gpu.upload(address, array[head], self._lane.stream)
            self._lane.gpu.synchronize(self._lane.stream)

    def more_logits(self, rows: int) -> None:
        """Room for the logits of `rows` tokens; graphs that were captured over the old place go. The lane is held."""
        if rows <= self.logits.rows:
            return
        self.drop_graphs()
        grown = Logits(self._lane.gpu, rows, self._vocab)
        self._owned.remove(self.logits)
        self.logits.close()
        self.logits = grown
        self._owned.append(grown)

    def keep_graph(self, key: tuple[int, int], graph: CapturedGraph, most: int) -> None:
        """Keep a captured step; the oldest goes when there are more than `most`. The lane is held."""
        while len(self.graphs) >= most:
            oldest = self.graphs.pop(next(iter(self.graphs)))
            self._owned.remove(oldest)
            oldest.close()
        self.graphs[key] = graph
        self._owned.append(graph)

    def drop_graphs(self) -> None:
        """Forget captured steps. The lane is held."""
        for graph in self.graphs.values():
            self._owned.remove(graph)
            graph.close()
        self.graphs.clear()

    def _heads(self, index: int, start: int) -> Iterator[tuple[int, int]]:
        """(head, address of its row `start`): the rows of one head are contiguous."""
        shape, size = self._shapes[index], int(np.dtype(self._dtypes[index]).itemsize)
        row = math.prod(shape[3:]) * size
        for head in range(shape[1]):
            yield head, self._starts[index] + (head * self._capacity + start) * row

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._capacity:
            raise EngineError(f"rows {start} to {stop} are not in a KV cache of {self._capacity} tokens")


class DeviceFeatures(Features):
    """`Features` whose arrays lie on the device; `main` and `deepstack` bring them to the host when first read.

    The decoder of the same engine takes its rows from the device instead (`rows`). Making one does not wait for the
    vision tower: `ready` is the event after its run. The memory is freed when the object is collected.
    """

    def __init__(self, lane: Lane, tokens: int, hidden: int, deepstack: int) -> None:
        """Allocate room for `tokens` features of `hidden` values, and `deepstack` layers of as many. Lane is held."""
        main = aligned(4 * tokens * hidden)
        memory = lane.gpu.allocate(main + aligned(4 * deepstack * tokens * hidden), lane.stream)
        self._set(_lane=lane, _memory=memory, _main_bytes=main, ready=None, _host=None)
        self._set(tokens=tokens, hidden=hidden, layers=deepstack)
        self._set(_end=weakref.finalize(self, lane.bury, memory))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    tokens: int
    hidden: int
    layers: int
    ready: Any
    _lane: Lane
    _memory: GpuMemory
    _main_bytes: int
    _host: tuple[F32, F32 | None] | None

    @property
    def lane(self) -> Lane:
        """The vision tower's stream."""
        return self._lane

    @property
    def address(self) -> int:
        """Of the features [tokens, hidden] float32."""
        return self._memory.address

    @property
    def deepstack_address(self) -> int:
        """Of the DeepStack features [layers, tokens, hidden] float32."""
        return self._memory.address + self._main_bytes

    def finished(self, event: Any) -> None:
        """The run that fills the memory is on the stream, `event` is after it."""
        self._set(ready=event)

    @property
    def main(self) -> F32:
        """[tokens, hidden]; waits for the tower."""
        return self._on_host()[0]

    @property
    def deepstack(self) -> F32 | None:
        """[layers, tokens, hidden] or None; waits for the tower."""
        return self._on_host()[1] if self.layers else None

    @property
    def nbytes(self) -> int:
        return 4 * self.tokens * self.hidden * (1 + self.layers)

    def _on_host(self) -> tuple[F32, F32 | None]:
        with self._lane.lock:
            if self._host is None:
                main: F32 = np.empty((self.tokens, self.hidden), np.float32)
                deep: F32 = np.empty((self.layers, self.tokens, self.hidden), np.float32)
                with self._lane.use():
                    gpu, stream = self._lane.gpu, self._lane.stream
                    gpu.download(main, self.address, stream)
                    if self.layers:
                        gpu.download(deep, self.deepstack_address, stream)
                    gpu.synchronize(stream)
                self._set(_host=(main, deep if self.layers else None))
            assert self._host is not None
            return self._host

    def __repr__(self) -> str:
        return f"DeviceFeatures(tokens={self.tokens}, hidden={self.hidden}, layers={self.layers})"

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def check_tensors(found: Mapping[str, PlanTensor], specs: Sequence[TensorSpec], graph: str) -> None:
    """A plan's interface against the manifest's.

    Raises:
        EngineError: names, types or ranks differ: the plan was built from another graph.
    """
    wanted = {s.name: s for s in specs}
    odd = sorted(found.keys() ^ wanted.keys())
    if odd:
        names = ", ".join(odd[:4])
        raise EngineError(f"the {graph} engine's tensors differ from the manifest ({names}); build it again")
    for name, spec in wanted.items():
        tensor = found[name]
        fits = len(tensor.shape) == len(spec.shape) and all(
            a == b for a, b in zip(tensor.shape, spec.shape) if a != -1 and isinstance(b, int)
        )
        if tensor.dtype != spec.dtype or not fits:
            raise EngineError(
                f"{name!r} of the {graph} engine is {tensor.dtype} {list(tensor.shape)}, the manifest says "
                f"{spec.dtype} {list(spec.shape)}; build it again"
            )
