"""A stand-in for the CUDA driver: host memory, the real kernel source run by `grid_host.cpp`, and a record of calls."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop.gpu import GpuMemory, KernelArgument
from gog_edge.crop.native import SOURCES
from gog_edge.errors import EngineError
from tests.crop.toolchain import need, run

HERE = Path(__file__).parent


def build_grid(folder: Path) -> ctypes.CDLL:
    """The CUDA kernel compiled for the host."""
    target = folder / "grid.so"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-pthread")
    run(need("g++", "clang++"), *flags, f"-I{SOURCES}", f"-I{HERE}", HERE / "grid_host.cpp", "-o", target)
    return ctypes.CDLL(str(target))


class FakeMemory:
    def __init__(self, owner: FakeDriver, nbytes: int, array: NDArray[Any] | None = None) -> None:
        self.array = np.full(nbytes, 0xCD, np.uint8) if array is None else array
        self.owner, self.nbytes, self.open = owner, nbytes, True

    @property
    def address(self) -> int:
        assert self.open, "freed memory is used"
        return int(self.array.ctypes.data)

    def close(self) -> None:
        assert self.open, "memory is freed twice"
        self.open = False
        self.owner.calls.append(("free", self.nbytes))
        self.owner.live.remove(self)
        if self.array.flags.writeable:
            self.array[:] = 0xEE  # whoever reads it now sees


class FakeDriver:
    """`grid`: what `build_grid` made.  `integrated`: host and device share memory.  `memory`: bytes there are."""

    name = "fake"

    def __init__(self, grid: ctypes.CDLL, arch: str = "sm_87", integrated: bool = False, memory: int = 1 << 30) -> None:
        self.arch, self._grid, self._integrated, self._memory = arch, grid, integrated, memory
        self.calls: list[tuple[Any, ...]] = []
        self.live: list[FakeMemory] = []

    def _new(self, memory: FakeMemory) -> FakeMemory:
        self.live.append(memory)
        return memory

    def allocate(self, nbytes: int) -> FakeMemory:
        if sum(m.nbytes for m in self.live) + nbytes > self._memory:
            raise EngineError("CUDA failed allocating: out of memory")
        self.calls.append(("allocate", nbytes))
        return self._new(FakeMemory(self, nbytes))

    def share(self, array: NDArray[Any]) -> FakeMemory | None:
        if not self._integrated:
            return None
        self.calls.append(("share", array.nbytes))
        return self._new(FakeMemory(self, array.nbytes, array))

    def upload(self, target: GpuMemory, array: NDArray[Any]) -> None:
        assert isinstance(target, FakeMemory) and target.open and array.flags.c_contiguous
        assert array.nbytes <= target.nbytes
        self.calls.append(("upload", array.nbytes))
        ctypes.memmove(target.address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], source: GpuMemory) -> None:
        assert isinstance(source, FakeMemory) and source.open and array.flags.c_contiguous
        assert array.nbytes <= source.nbytes
        self.calls.append(("download", array.nbytes))
        ctypes.memmove(array.ctypes.data, source.address, array.nbytes)

    def load(self, cubin: bytes, symbol: str) -> str:
        assert cubin[:4] == b"\x7fELF"
        assert symbol.encode() in cubin
        self.calls.append(("load", symbol))
        return symbol

    def launch(self, kernel: Any, grid: tuple[int, int], block: int, arguments: Sequence[KernelArgument]) -> None:
        self.calls.append(("launch", kernel, grid, block))
        c_types = {int: ctypes.c_void_p, np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.float32: ctypes.c_float}
        values = [c_types[type(a)](a if isinstance(a, int) else a.item()) for a in arguments]
        self._grid.gog_launch(ctypes.c_uint32(grid[0]), ctypes.c_uint32(grid[1]), ctypes.c_uint32(block), *values)

    def synchronize(self) -> None:
        self.calls.append(("synchronize",))

    def count(self, kind: str) -> int:
        return sum(call[0] == kind for call in self.calls)
