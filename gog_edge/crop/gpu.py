"""What the CUDA crop kernel asks of a GPU: a handful of leaf calls, so that tests can stand in for the driver.

All calls of one driver are ordered: they go to one stream.  Addresses are device addresses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Union

import numpy as np
from numpy.typing import NDArray

KernelArgument = Union[int, np.int32, np.int64, np.float32]
"""A Python int is an address; the rest are passed as the C type of the same name."""


class GpuMemory(Protocol):
    """A piece of device memory; freed by `close` (in stream order) or when it is collected."""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def close(self) -> None: ...


class GpuDriver(Protocol):
    """One device and one stream on it.

    Every call raises EngineError when the driver reports a failure.
    """

    @property
    def name(self) -> str:
        """Of the device, for people."""
        ...

    @property
    def arch(self) -> str:
        """What NVRTC compiles for, e.g. sm_87."""
        ...

    def allocate(self, nbytes: int) -> GpuMemory: ...

    def share(self, array: NDArray[Any]) -> GpuMemory | None:
        """The array's own memory as the device sees it, without a copy; None where host and device memory differ.

        The result keeps `array` alive."""
        ...

    def upload(self, target: GpuMemory, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the device; `array` may change as soon as this returns."""
        ...

    def download(self, array: NDArray[Any], source: GpuMemory) -> None:
        """Fill a C-contiguous array from the device and wait for it."""
        ...

    def load(self, cubin: bytes, symbol: str) -> Any:
        """The kernel `symbol` of a compiled module."""
        ...

    def launch(self, kernel: Any, grid: tuple[int, int], block: int, arguments: Sequence[KernelArgument]) -> None: ...

    def synchronize(self) -> None: ...


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A C-contiguous array on the device, e.g. the `patches` input of a vision engine that runs there.

    Work that reads it must come later on the driver's stream, or after `GpuDriver.synchronize`.
    """

    memory: GpuMemory
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array; `memory` may be larger."""
        return math.prod(self.shape) * self.dtype.itemsize

    def close(self) -> None:
        """Free the memory."""
        self.memory.close()
