"""`Gpu` on a real device through cuda-core and cuda-bindings. Not run on hardware yet: no GPU was at hand.

Everything above these calls runs in tests on `trt_host.HostGpu`; the calls themselves are checked against the bindings'
signatures only. `gog-edge bench self-check` on a machine with a GPU is the proof that is missing.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop.cuda_driver import CudaDriver, open_driver
from gog_edge.crop.gpu import GpuDriver, GpuMemory
from gog_edge.engines.tensorrt.calls import PinnedMemory, Plan, PlanRequest
from gog_edge.engines.tensorrt.library import Library, TrtPlan
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
    """Memory of cuMemHostAlloc."""

    def __init__(self, gpu: CudaGpu, address: int, nbytes: int) -> None:
        self._gpu, self.address = gpu, address
        self.array: NDArray[Any] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def close(self) -> None:
        from cuda.bindings import driver

        self._gpu.make_current()
        check(driver.cuMemFreeHost(self.address), "freeing page-locked memory")


class CudaGpu:
    """See `Gpu`. Make one with `open_gpu`. The crop kernel's driver opened the device; both use its primary context."""

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
        """See `Gpu.allocate`."""
        from cuda.bindings import driver

        self.make_current()
        if stream is not None:
            what = f"allocating {_size(nbytes)}"
            return _Pooled(self, call(what, self._device.allocate, nbytes, stream=stream), stream)
        result = driver.cuMemAlloc(nbytes)
        if int(result[0]) == _OUT_OF_MEMORY:
            raise EngineError(f"{self.name} has no {_size(nbytes)} left")
        return _Plain(self, int(check(result, f"allocating {_size(nbytes)}")), nbytes)

    def pin(self, nbytes: int) -> PinnedMemory:
        """See `Gpu.pin`."""
        from cuda.bindings import driver

        self.make_current()
        address = int(check(driver.cuMemHostAlloc(nbytes, 0), f"page-locking {_size(nbytes)}"))
        return _Pinned(self, address, nbytes)

    def stream(self) -> Any:
        """See `Gpu.stream`."""
        self.make_current()
        return call("making a stream", self._device.create_stream)

    def upload(self, target: int, array: NDArray[Any], stream: Any) -> None:
        """See `Gpu.upload`."""
        from cuda.bindings import driver

        self.make_current()
        _contiguous(array)
        check(driver.cuMemcpyHtoDAsync(target, array.ctypes.data, array.nbytes, stream.handle), "uploading")

    def download(self, array: NDArray[Any], source: int, stream: Any) -> None:
        """See `Gpu.download`."""
        from cuda.bindings import driver

        self.make_current()
        _contiguous(array)
        check(driver.cuMemcpyDtoHAsync(array.ctypes.data, source, array.nbytes, stream.handle), "downloading")

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """See `Gpu.copy`."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuMemcpyDtoDAsync(target, source, nbytes, stream.handle), "copying")

    def clear(self, address: int, nbytes: int, stream: Any) -> None:
        """See `Gpu.clear`."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuMemsetD8Async(address, 0, nbytes, stream.handle), "clearing memory")

    def event(self, stream: Any) -> Any:
        """See `Gpu.event`; destroyed when it is collected."""
        self.make_current()
        return call("recording an event", stream.record)

    def wait(self, event: Any, stream: Any) -> None:
        """See `Gpu.wait`."""
        self.make_current()
        call("waiting for an event", stream.wait, event)

    def synchronize(self, stream: Any) -> None:
        """See `Gpu.synchronize`."""
        self.make_current()
        call("running on the device", stream.sync)

    def begin_capture(self, stream: Any) -> None:
        """See `Gpu.begin_capture`. Thread-local: other threads (the vision tower's) may go on allocating."""
        from cuda.bindings import driver

        self.make_current()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(driver.cuStreamBeginCapture(stream.handle, mode), "beginning a capture")

    def end_capture(self, stream: Any) -> Any:
        """See `Gpu.end_capture`: an executable graph."""
        from cuda.bindings import driver

        self.make_current()
        graph = check(driver.cuStreamEndCapture(stream.handle), "ending a capture")
        try:
            return check(driver.cuGraphInstantiate(graph, 0), "making a graph")
        finally:
            check(driver.cuGraphDestroy(graph), "freeing a captured graph")

    def launch(self, graph: Any, stream: Any) -> None:
        """See `Gpu.launch`."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuGraphLaunch(graph, stream.handle), "launching a graph")

    def destroy(self, graph: Any) -> None:
        """See `Gpu.destroy`."""
        from cuda.bindings import driver

        self.make_current()
        check(driver.cuGraphExecDestroy(graph), "freeing a graph")

    def crop_driver(self) -> tuple[GpuDriver, Any] | None:
        """See `Gpu.crop_driver`."""
        return self._crop, self._crop.stream

    def load(self, request: PlanRequest) -> Plan:
        """See `Gpu.load`."""
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
