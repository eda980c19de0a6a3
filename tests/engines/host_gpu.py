"""What `CudaGpu` does, done by the host: memory is numpy's, a plan is the portable graph in ONNX Runtime on the CPU.

It runs the very session code that a GPU runs, gives real numbers, and is as strict as a device: work waits on its
stream until somebody synchronizes (so a missing event or wait shows as wrong numbers, not as luck), addresses outside
of live memory are refused, freed memory is overwritten, and a captured graph repeats the shapes and addresses it was
captured with.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop.gpu import GpuDriver
from gog_edge.engines.tensorrt.memory import ALIGN, nbytes_of
from gog_edge.engines.tensorrt.plan import PlanRequest, PlanTensor, Shape
from gog_edge.errors import EngineError
from gog_edge.manifest import TensorSpec

_FRESH, _FREED = 0xCD, 0xEE
_PAST, _PRESENT = "past_key_values.", "present."


class HostMemory:
    """A block of aligned host memory that plays device memory or page-locked memory."""

    def __init__(self, owner: HostGpu, nbytes: int, stream: HostStream | None) -> None:
        raw = np.full(nbytes + ALIGN, _FRESH, np.uint8)
        start = -raw.ctypes.data % ALIGN
        self.array: NDArray[Any] = raw[start : start + nbytes]
        self.address, self.nbytes = int(self.array.ctypes.data), nbytes
        self._owner, self._stream, self.open = owner, stream, True

    def close(self) -> None:
        """Free it, in the order of its stream; without a stream after everything on the device."""
        if not self.open:
            raise EngineError("device memory is freed twice")
        self.open = False
        if self._stream is None:
            self._owner.drain()
            self._owner.release(self)
        else:
            self._owner.put(self._stream, "free", lambda: self._owner.release(self))


class HostStream:
    """Work in order, done when somebody waits for it."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self.queued = self.done = 0
        self.recording: list[Callable[[], None]] | None = None

    def run_to(self, mark: int) -> None:
        while self.done < mark:
            work = self.waiting.popleft()
            self.done += 1
            work()


@dataclass(frozen=True)
class HostEvent:
    stream: HostStream
    mark: int


class HostGpu:
    """See `CudaGpu`. `record` (tests) gets every call as (name, …)."""

    name = "host"
    capability = "cpu"

    def __init__(self, threads: int = 1, memory: int = 1 << 34, crop: GpuDriver | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._threads, self._memory, self._crop = threads, memory, crop
        self._blocks: dict[int, HostMemory] = {}
        self._starts: list[int] = []
        self._streams: list[HostStream] = []
        self._lock = threading.RLock()

    @property
    def library(self) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def live(self) -> list[HostMemory]:
        """Blocks that are not freed."""
        return list(self._blocks.values())

    # -- memory ----------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int, stream: Any = None) -> HostMemory:
        """See `CudaGpu.allocate`."""
        with self._lock:
            if sum(b.nbytes for b in self._blocks.values()) + nbytes > self._memory:
                raise EngineError(f"no memory on the device for {nbytes} bytes")
            self.calls.append(("allocate", nbytes))
            return self._new(HostMemory(self, nbytes, stream))

    def pin(self, nbytes: int) -> HostMemory:
        """See `CudaGpu.pin`."""
        with self._lock:
            self.calls.append(("pin", nbytes))
            return self._new(HostMemory(self, nbytes, None))

    def _new(self, block: HostMemory) -> HostMemory:
        self._blocks[block.address] = block
        bisect.insort(self._starts, block.address)
        return block

    def release(self, block: HostMemory) -> None:
        """Overwrite and forget a block."""
        with self._lock:
            self.calls.append(("free", block.nbytes))
            block.array[:] = _FREED
            del self._blocks[block.address]
            self._starts.remove(block.address)

    def bytes_at(self, address: int, nbytes: int) -> NDArray[Any]:
        """Live memory as uint8.

        Raises:
            EngineError: nothing that is allocated lies there.
        """
        with self._lock:
            place = bisect.bisect_right(self._starts, address) - 1
            block = self._blocks[self._starts[place]] if place >= 0 else None
            if block is None or address + nbytes > block.address + block.nbytes:
                raise EngineError(f"{nbytes} bytes at {address:#x} are not allocated")
            at = address - block.address
            view: NDArray[Any] = block.array[at : at + nbytes]
            return view

    def upload(self, target: int, array: NDArray[Any], stream: Any) -> None:
        """See `CudaGpu.upload`; reads `array` when the copy is done, as a device does with page-locked memory."""
        flat = _flat(array)

        def work() -> None:
            self.bytes_at(target, flat.nbytes)[:] = flat

        self.put(stream, "upload", work, flat.nbytes)

    def download(self, array: NDArray[Any], source: int, stream: Any) -> None:
        """See `CudaGpu.download`."""
        flat = _flat(array)

        def work() -> None:
            flat[:] = self.bytes_at(source, flat.nbytes)

        self.put(stream, "download", work, flat.nbytes)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """See `CudaGpu.copy`."""

        def work() -> None:
            self.bytes_at(target, nbytes)[:] = self.bytes_at(source, nbytes)

        self.put(stream, "copy", work, nbytes)

    def clear(self, address: int, nbytes: int, stream: Any) -> None:
        """See `CudaGpu.clear`."""

        def work() -> None:
            self.bytes_at(address, nbytes)[:] = 0

        self.put(stream, "clear", work, nbytes)

    # -- order -----------------------------------------------------------------------------------------------

    def stream(self) -> HostStream:
        """See `CudaGpu.stream`."""
        self._streams.append(HostStream())
        return self._streams[-1]

    def put(self, stream: HostStream, what: str, work: Callable[[], None], *details: Any) -> None:
        """Queue work, or record it while the stream captures."""
        with self._lock:
            if stream.recording is not None:
                if what == "free":
                    raise EngineError("memory is freed while its stream is captured")
                self.calls.append(("record", what, *details))
                stream.recording.append(work)
                return
            self.calls.append((what, *details))
            stream.waiting.append(work)
            stream.queued += 1

    def event(self, stream: Any) -> HostEvent:
        """See `CudaGpu.event`."""
        with self._lock:
            self.calls.append(("event", self._number(stream)))
            return HostEvent(stream, stream.queued)

    def wait(self, event: Any, stream: Any) -> None:
        """See `CudaGpu.wait`."""
        source = event.stream
        self.put(stream, "wait", lambda: source.run_to(event.mark), self._number(source), self._number(stream))

    def synchronize(self, stream: Any) -> None:
        """See `CudaGpu.synchronize`."""
        with self._lock:
            if stream.recording is not None:
                raise EngineError("a stream is synchronized while it is captured")
            self.calls.append(("synchronize", self._number(stream)))
            stream.run_to(stream.queued)

    def drain(self) -> None:
        """Do everything that waits on any stream."""
        with self._lock:
            for stream in self._streams:
                stream.run_to(stream.queued)

    def _number(self, stream: HostStream) -> int:
        return self._streams.index(stream)

    def begin_capture(self, stream: Any) -> None:
        """See `CudaGpu.begin_capture`."""
        with self._lock:
            self.calls.append(("begin_capture", self._number(stream)))
            stream.recording = []

    def end_capture(self, stream: Any) -> list[Callable[[], None]]:
        """See `CudaGpu.end_capture`."""
        with self._lock:
            graph, stream.recording = stream.recording, None
            if graph is None:
                raise EngineError("the stream does not capture")
            self.calls.append(("end_capture", len(graph)))
            return list(graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """See `CudaGpu.launch`."""

        def work() -> None:
            for step in list(graph):
                step()

        self.put(stream, "launch", work, len(graph))

    def destroy(self, graph: Any) -> None:
        """See `CudaGpu.destroy`; a graph that is launched afterwards does nothing."""
        self.drain()
        self.calls.append(("destroy",))
        graph.clear()

    def crop_driver(self) -> tuple[GpuDriver, Any] | None:
        """See `CudaGpu.crop_driver`."""
        return (self._crop, self.stream()) if self._crop is not None else None

    def load(self, request: PlanRequest) -> HostPlan:
        """See `CudaGpu.load`: the graph itself instead of the plan."""
        self.calls.append(("load", request.onnx.name))
        return HostPlan(self, request, self._threads)


class HostPlan:
    """See `TrtPlan`: limits come from the build's report."""

    def __init__(self, gpu: HostGpu, request: PlanRequest, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.gpu, self._report = gpu, request.report
        self.decoder = any(t.name == "inputs_embeds" for t in request.spec.inputs)
        self.profiles = 2 if self.decoder else 1
        self.session = onnxruntime.InferenceSession(str(request.onnx), options, providers=["CPUExecutionProvider"])
        self.specs = {t.name: t for t in (*request.spec.inputs, *request.spec.outputs)}
        self.outputs = [t.name for t in request.spec.outputs]
        inputs = {t.name for t in request.spec.inputs}
        self.tensors: Mapping[str, PlanTensor] = {n: self._tensor(t, n in inputs) for n, t in self.specs.items()}

    def _tensor(self, spec: TensorSpec, is_input: bool) -> PlanTensor:
        cap = int(self._report["capacity"])
        shape = tuple(d if isinstance(d, int) else cap if d == "cap" else -1 for d in spec.shape)
        alias = _PAST + spec.name.removeprefix(_PRESENT) if spec.name.startswith(_PRESENT) else None
        return PlanTensor(spec.name, spec.dtype, shape, is_input, spec.name == "last_k", alias)

    def limits(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """See `TrtPlan.limits`; windows may be of any size."""
        report = self._report
        if self.decoder:
            sizes = {"s": (1, int(report["verify"] if profile else report["chunk"]))}
        else:
            low, _, high = report["image_patches"]
            sizes = {"n": (low, high), "W": (1, high), "L": (1, high)}
        shape = self.specs[name].shape
        cap = int(report["capacity"])
        ranges = [(d, d) if isinstance(d, int) else sizes.get(d, (cap, cap)) for d in shape]
        return tuple(r[0] for r in ranges), tuple(r[1] for r in ranges)

    def scratch(self, profile: int) -> int:
        return 1 << 10

    def context(self, profile: int, stream: Any, scratch: int, nbytes: int, *, few_shapes: bool) -> HostContext:
        """See `TrtPlan.context`."""
        self.gpu.bytes_at(scratch, nbytes)
        self.gpu.calls.append(("context", profile, few_shapes))
        return HostContext(self, profile)

    def close(self) -> None:
        """See `TrtPlan.close`."""


class HostContext:
    """See `TrtContext`."""

    def __init__(self, plan: HostPlan, profile: int) -> None:
        self._plan, self._profile = plan, profile
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def shape(self, name: str, shape: Shape) -> None:
        """See `TrtContext.shape`."""
        low, high = self._plan.limits(name, self._profile)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high)):
            raise EngineError(f"input {name} of shape {shape} is outside of profile {self._profile}: {low} to {high}")
        self._shapes[name] = shape

    def bind(self, name: str, address: int) -> None:
        """See `TrtContext.bind`."""
        if address % ALIGN:
            raise EngineError(f"the address of {name} is not a multiple of {ALIGN}")
        self._addresses[name] = address

    def enqueue(self, stream: Any) -> None:
        """See `TrtContext.enqueue`; shapes, addresses and host values are those of this moment."""
        plan, gpu = self._plan, self._plan.gpu
        missing = sorted(plan.tensors.keys() - self._addresses.keys())
        for tensor in plan.tensors.values():
            if tensor.is_input and -1 not in tensor.shape:
                self._shapes.setdefault(tensor.name, tensor.shape)
            if tensor.is_input and tensor.name not in self._shapes:
                missing.append(tensor.name)
        if missing:
            raise EngineError(f"a run lacks the shape or address of {', '.join(missing)}")
        places = dict(self._addresses)
        for name, tensor in plan.tensors.items():
            if tensor.alias is not None and places[name] != places[tensor.alias]:
                raise EngineError(f"{name} must lie where {tensor.alias} lies")
        views = {n: self._view(n, s, places[n]) for n, s in self._shapes.items()}
        host = {n: views[n].copy() for n, t in plan.tensors.items() if t.is_input and t.host}

        def work() -> None:
            feeds = {n: self._view(n, v.shape, places[n]) for n, v in views.items()} | host
            for name, value in zip(plan.outputs, plan.session.run(plan.outputs, feeds)):
                array = np.ascontiguousarray(value)
                gpu.bytes_at(places[name], array.nbytes)[:] = _flat(array)

        gpu.put(stream, "run", work, self._profile, tuple(self._shapes.get("inputs_embeds", (0, 0))[1:2]))

    def _view(self, name: str, shape: Shape, address: int) -> NDArray[Any]:
        dtype = self._plan.specs[name].dtype
        return self._plan.gpu.bytes_at(address, nbytes_of(shape, dtype)).view(dtype).reshape(shape)

    def capturable(self, stream: Any) -> bool:
        return True

    def close(self) -> None:
        self._plan.gpu.calls.append(("close context", self._profile))


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    if not array.flags.c_contiguous:
        raise EngineError("only C-contiguous arrays can be copied")
    return array.reshape(-1).view(np.uint8)
