"""Rows of a KV cache that lies on a GPU: cleared, copied, read and written there, without a way through the host.

ONNX Runtime copies whole tensors only, and rows of [1, heads, capacity, …] are one piece a head: CUDA's 2-D copy. It
runs in the primary context of the device, as ONNX Runtime does, and has ended when these functions return.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError


@dataclass(frozen=True)
class DeviceShape:
    """Of a buffer [1, heads, capacity, …]."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def row(self) -> int:
        """Bytes of one row of one head."""
        return math.prod(self.shape[3:]) * int(np.dtype(self.dtype).itemsize)

    @property
    def pitch(self) -> int:
        """Bytes from one head to the next."""
        return self.shape[2] * self.row

    @property
    def nbytes(self) -> int:
        return self.shape[1] * self.pitch


class DeviceRows:
    """Copies on one device. `value`: an OrtValue there. Every call raises EngineError where CUDA reports a failure or
    the packages of the extra `gpu` are missing."""

    def __init__(self, device_id: int) -> None:
        try:
            from cuda.bindings import driver
            from cuda.core import Device
        except ImportError as e:
            raise EngineError(f"a KV cache on the GPU needs cuda-core ({e}); pip install 'gog-edge[gpu]'") from e
        self._driver = driver
        try:
            Device(device_id).set_current()
        except Exception as e:  # cuda-core raises several classes without a common base
            raise EngineError(f"CUDA device {device_id} can't be used: {e}") from e

    def clear(self, value: Any, shape: DeviceShape) -> None:
        """Zero all rows: attention multiplies those that nobody wrote by zero, and NaN would stay."""
        self._check(self._driver.cuMemsetD8(value.data_ptr(), 0, shape.nbytes), "clearing a KV cache")
        self._wait()

    def copy(self, to: Any, to_shape: DeviceShape, source: Any, shape: DeviceShape, rows: int) -> None:
        """The first `rows` of every head of `source` to `to`."""
        task = self._task(rows * shape.row, shape.shape[1])
        task.srcMemoryType = task.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        task.srcDevice, task.srcPitch = source.data_ptr(), shape.pitch
        task.dstDevice, task.dstPitch = to.data_ptr(), to_shape.pitch
        self._run(task, "copying a KV cache")

    def download(self, value: Any, shape: DeviceShape, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) as a host array [heads, rows, …]."""
        rows = np.empty((shape.shape[1], stop - start, *shape.shape[3:]), shape.dtype)
        if not rows.size:
            return rows
        task = self._task((stop - start) * shape.row, shape.shape[1])
        task.srcMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        task.srcDevice, task.srcPitch = value.data_ptr() + start * shape.row, shape.pitch
        task.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_HOST
        task.dstHost, task.dstPitch = rows.ctypes.data, task.WidthInBytes
        self._run(task, "reading a KV cache")
        return rows

    def upload(self, value: Any, shape: DeviceShape, start: int, rows: NDArray[Any]) -> None:
        """The inverse: host rows [heads, rows, …] to rows from `start` on."""
        if not rows.size:
            return
        rows = np.ascontiguousarray(rows, shape.dtype)
        task = self._task(rows.shape[1] * shape.row, shape.shape[1])
        task.srcMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_HOST
        task.srcHost, task.srcPitch = rows.ctypes.data, task.WidthInBytes
        task.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        task.dstDevice, task.dstPitch = value.data_ptr() + start * shape.row, shape.pitch
        self._run(task, "writing a KV cache")

    def _task(self, width: int, height: int) -> Any:
        task = self._driver.CUDA_MEMCPY2D()
        task.WidthInBytes, task.Height = width, height
        return task

    def _run(self, task: Any, what: str) -> None:
        self._check(self._driver.cuMemcpy2D(task), what)
        self._wait()

    def _wait(self) -> None:
        self._check(self._driver.cuCtxSynchronize(), "waiting for the device")

    @staticmethod
    def _check(result: tuple[Any, ...], what: str) -> None:
        if int(result[0]):
            raise EngineError(f"CUDA failed {what}: {getattr(result[0], 'name', result[0])}")
