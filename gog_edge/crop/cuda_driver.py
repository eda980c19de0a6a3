"""`GpuDriver` on a real device, through cuda-core and cuda-bindings.  Not run on hardware yet: no GPU was at hand.

Everything above these leaf calls is tested without a GPU; `gog-edge bench --self-check` compares the kernel with
the host's on a machine that has one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from gog_edge.crop.gpu import GpuMemory, KernelArgument
from gog_edge.errors import EngineError

log = logging.getLogger("gog_edge.crop")

_REGISTER_READ_ONLY = 0x08  # CU_MEMHOSTREGISTER_READ_ONLY


def open_driver(device: int = 0) -> CudaDriver:
    """The driver of CUDA device number `device`, with a stream of its own.

    Raises:
        EngineError: cuda-core is not installed, or there is no driver or no such device.
    """
    try:
        from cuda.core import Device
    except ImportError as e:
        raise EngineError(f"CUDA needs cuda-core ({e}); pip install 'gog-edge[gpu]'") from e
    try:
        found = Device(device)
        found.set_current()
        return CudaDriver(found)
    except Exception as e:  # cuda-core raises several classes for a missing driver or device
        raise EngineError(f"no CUDA device {device}: {_first_line(e)}; see gog-edge doctor") from e


class _Owned:
    """Device memory of a cuda-core buffer."""

    def __init__(self, buffer: Any, stream: Any) -> None:
        self.buffer, self._stream = buffer, stream
        self.address, self.nbytes = int(buffer.handle), int(buffer.size)

    def close(self) -> None:
        self.buffer.close(self._stream)


class _Shared:
    """Host memory registered with the device; unregistered when closed."""

    def __init__(self, array: NDArray[Any], address: int) -> None:
        self._array: NDArray[Any] | None = array
        self.address, self.nbytes = address, int(array.nbytes)

    def close(self) -> None:
        from cuda.bindings import driver

        if self._array is not None:
            array, self._array = self._array, None
            _check(driver.cuCtxSynchronize(), "waiting for the device")
            _check(driver.cuMemHostUnregister(array.ctypes.data), "unregistering a frame")

    def __del__(self) -> None:
        if getattr(self, "_array", None) is not None:
            try:
                self.close()
            except EngineError as e:
                log.warning("%s", e)


class CudaDriver:
    """See `GpuDriver`.  Make one with `open_driver`."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.stream = device.create_stream()
        self.name: str = str(device.name)
        self.arch: str = f"sm_{device.arch}"
        self._integrated = bool(device.properties.integrated)

    def allocate(self, nbytes: int) -> GpuMemory:
        """See `GpuDriver.allocate`."""
        self._device.set_current()
        return _Owned(_call("allocating", self._device.allocate, nbytes, stream=self.stream), self.stream)

    def share(self, array: NDArray[Any]) -> GpuMemory | None:
        """See `GpuDriver.share`: integrated devices (Jetson) read the host's memory."""
        if not self._integrated:
            return None
        from cuda.bindings import driver

        self._device.set_current()
        address = array.ctypes.data
        error = driver.cuMemHostRegister(address, array.nbytes, _REGISTER_READ_ONLY)[0]
        if int(error):
            log.info("the frame can't be shared with %s (%s): it is copied", self.name, error)
            return None
        found = _check(driver.cuMemHostGetDevicePointer(address, 0), "sharing a frame")
        return _Shared(array, int(found))

    def upload(self, target: GpuMemory, array: NDArray[Any]) -> None:
        """See `GpuDriver.upload`; the driver stages pageable memory before the call returns."""
        from cuda.bindings import driver

        self._device.set_current()
        handle = self.stream.handle
        _check(driver.cuMemcpyHtoDAsync(target.address, array.ctypes.data, array.nbytes, handle), "uploading")

    def download(self, array: NDArray[Any], source: GpuMemory) -> None:
        """See `GpuDriver.download`."""
        from cuda.bindings import driver

        self._device.set_current()
        handle = self.stream.handle
        _check(driver.cuMemcpyDtoHAsync(array.ctypes.data, source.address, array.nbytes, handle), "downloading")
        self.synchronize()

    def load(self, cubin: bytes, symbol: str) -> Any:
        """See `GpuDriver.load`."""
        from cuda.core import ObjectCode

        self._device.set_current()
        return _call("loading the crop kernel", lambda: ObjectCode.from_cubin(cubin).get_kernel(symbol))

    def launch(self, kernel: Any, grid: tuple[int, int], block: int, arguments: Sequence[KernelArgument]) -> None:
        """See `GpuDriver.launch`."""
        from cuda.core import LaunchConfig, launch

        self._device.set_current()
        _call("launching", launch, self.stream, LaunchConfig(grid=grid, block=block), kernel, *arguments)

    def synchronize(self) -> None:
        """See `GpuDriver.synchronize`."""
        _call("waiting for the device", self.stream.sync)


def _call(what: str, function: Any, *args: Any, **options: Any) -> Any:
    """Call into cuda-core; whatever it raises becomes an EngineError."""
    try:
        return function(*args, **options)
    except Exception as e:
        raise EngineError(f"CUDA failed {what}: {_first_line(e)}") from e


def _check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a cuda-bindings call (error, value…)."""
    if int(result[0]):
        raise EngineError(f"CUDA failed {what}: {result[0]!s}")
    return result[1] if len(result) > 1 else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
