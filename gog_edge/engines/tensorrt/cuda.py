"""Every CUDA call of the TensorRT engine, through cuda-core and cuda-bindings. Not run on hardware yet.

Addresses are plain integers. Work on one stream runs in the order of the calls, work on two streams in any order unless
an event says otherwise; nothing that was put on a stream can be relied upon before `synchronize` returns. Everything
above these calls runs in tests on a stand-in (`tests/engines/host_gpu.py`); the calls themselves are made with a
stand-in for libcuda. `gog-edge bench self-check` on a machine with a GPU is the proof that is missing.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop.cuda_driver import CudaDriver, open_driver
from gog_edge.crop.gpu import GpuDriver, GpuMemory
from gog_edge.engines.tensorrt.plan import Library, PlanRequest, TrtPlan
from gog_edge.errors import EngineError

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


def open_gpu(library: Library, device: int = 0) -> CudaGpu:
    """The CUDA device number `device`.

    Raises:
        EngineError: cuda-core is not installed, or there is no driver or no such device.
    """
    return CudaGpu(library, open_driver(device), device)


class _Plain:
    """Memory of cuMemAlloc: freeing it waits for the device."""

    def __init__(self, gpu: CudaGpu, address: int, nbytes: int) -> None:
        self._gpu, self.address, self.nbytes = gpu, address, nbytes

    def close(self) -> None:
        from cuda.bindings import driver

        self._gpu.make_current()
        check(driver.cuMemFree(self.address), "freeing memory")


class _Pooled:
    """Memory of the device's pool, freed in the order of its stream."""

    def __init__(self, gpu: CudaGpu, buffer: Any, stream: Any) -> None:
        self._gpu, self._buffer, self._stream = gpu, buffer, stream
        self.address, self.nbytes = int(buffer.handle), int(buffer.size)

    def close(self) -> None:
        self._gpu.make_current()
        call("freeing memory", self._buffer.close, self._stream)


class _Pinned:
    """Page-locked memory of cuMemHostAlloc: copies to and from it run beside the host's own work."""

    def __init__(self, gpu: CudaGpu, address: int, nbytes: int) -> None:
        self._gpu, self.address = gpu, address
        self.array: NDArray[Any] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def close(self) -> None:
        from cuda.bindings import driver

        self._gpu.make_current()
        check(driver.cuMemFreeHost(self.address), "freeing page-locked memory")


class CudaGpu:
    """One device; make it with `open_gpu`. Every call raises EngineError when the driver or TensorRT reports a failure.

    The crop kernel's driver opened the device; both use its primary context.
    """

    def __init__(self, library: Library, crop: CudaDriver, device: int) -> None:
        from cuda.core import Device

        self._library, self._crop = library, crop
        self._device = Device(device)
        self.name: str = str(self._device.name)
        self.capability: str = str(self._device.arch)

    @property
    def library(self) -> str:
        return f"{self._library.runtime} {self._library.version}"

    def make_current(self) -> None:
        """CUDA's context belongs to a thread: every call makes sure of it."""
        self._device.set_current()

    def allocate(self, nbytes: int, stream: Any = None) -> GpuMemory:
        """Device memory, 256-byte aligned. With a stream: from its pool, valid for later work on that stream (and on
        streams that wait for it), and `close` frees it in the order of the stream."""
        from cuda.bindings import driver

        self.make_current()
        if stream is not None:
            what = f"allocating {_size(nbytes)}"
            return _Pooled(self, call(what, self._device.allocate, nbytes, stream=stream), stream)
        result = driver.cuMemAlloc(nbytes)
        if int(result[0]) == _OUT_OF_MEMORY:
            raise EngineError(f"{self.name} has no {_size(nbytes)} left")
        return _Plain(self, int(check(result, f"allocating {_size(nbytes)}")), nbytes)

    def pin(self, nbytes: int) -> _Pinned:
        """Page-locked host memory."""
        from cuda.bindings import driver

        self.make_current()
        address = int(check(driver.cuMemHostAlloc(nbytes, 0), f"page-locking {_size(nbytes)}"))
        return _Pinned(self, address, nbytes)

    def stream(self) -> Any:
        """A new stream."""
        self.make_current()
        return call("making a stream", self._device.create_stream)

    def upload(self, target: int, array: NDArray[Any], stream: Any) -> None:
        """Copy a C-contiguous array to the device; it must not change before the copy is done."""
        from cuda.bindings import driver

        self.make_current()
        _contiguous(array)
        check(driver.cuMemcpyHtoDAsync(target, array.ctypes.data, array.nbytes, stream.handle), "uploading")

    def download(self, array: NDArray[Any], source: int, stream: Any) -> None:
        """Fill a C-contiguous array; its content is there once the stream is synchronized."""
        from cuda.bindings import driver

        self.make_current()
        _contiguous(array)
        check(driver.cuMemcpyDtoHAsync(array.ctypes.data, source, array.nbytes, stream.handle), "downloading")

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Within the device."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuMemcpyDtoDAsync(target, source, nbytes, stream.handle), "copying")

    def clear(self, address: int, nbytes: int, stream: Any) -> None:
        """Zero bytes."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuMemsetD8Async(address, 0, nbytes, stream.handle), "clearing memory")

    def event(self, stream: Any) -> Any:
        """A mark after everything that is on the stream now; destroyed when it is collected."""
        self.make_current()
        return call("recording an event", stream.record)

    def wait(self, event: Any, stream: Any) -> None:
        """Later work on `stream` begins after the mark is reached; the host does not wait."""
        self.make_current()
        call("waiting for an event", stream.wait, event)

    def synchronize(self, stream: Any) -> None:
        """The host waits for everything on the stream."""
        self.make_current()
        call("running on the device", stream.sync)

    def begin_capture(self, stream: Any) -> None:
        """From here on work for the stream is recorded, not run.

        Thread-local: other threads (the vision tower's) may go on allocating."""
        from cuda.bindings import driver

        self.make_current()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(driver.cuStreamBeginCapture(stream.handle, mode), "beginning a capture")

    def end_capture(self, stream: Any) -> Any:
        """The recorded work as an executable graph: the same copies and runs, with the same shapes and addresses."""
        from cuda.bindings import driver

        self.make_current()
        graph = check(driver.cuStreamEndCapture(stream.handle), "ending a capture")
        try:
            return check(driver.cuGraphInstantiate(graph, 0), "making a graph")
        finally:
            check(driver.cuGraphDestroy(graph), "freeing a captured graph")

    def launch(self, graph: Any, stream: Any) -> None:
        """Put a whole graph on the stream."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuGraphLaunch(graph, stream.handle), "launching a graph")

    def destroy(self, graph: Any) -> None:
        """Let go of a graph."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuGraphExecDestroy(graph), "freeing a graph")

    def crop_driver(self) -> tuple[GpuDriver, Any] | None:
        """For the crop kernel: a driver on this device and the stream that it works on; None: there is none."""
        return self._crop, self._crop.stream

    def load(self, request: PlanRequest) -> TrtPlan:
        """Deserialize a plan; a stripped one gets its weights from the ONNX file.

        Raises:
            EngineError: built by another version or for another device, or its weights can't be set.
        """
        self.make_current()
        return TrtPlan.load(self._library, request, self.capability)


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a cuda-bindings call (error, value…).

    Raises:
        EngineError: it failed.
    """
    if int(result[0]):
        raise EngineError(f"CUDA failed {what}: {getattr(result[0], 'name', result[0])}")
    return result[1] if len(result) > 1 else None


def call(what: str, function: Any, *args: Any, **options: Any) -> Any:
    """Call into cuda-core.

    Raises:
        EngineError: whatever it raised.
    """
    try:
        return function(*args, **options)
    except Exception as e:  # cuda-core raises several classes without a common base
        line = next((text.strip() for text in str(e).splitlines() if text.strip()), type(e).__name__)
        raise EngineError(f"CUDA failed {what}: {line}") from e


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _contiguous(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise EngineError("only C-contiguous arrays can be copied")
