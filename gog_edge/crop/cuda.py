"""The crop kernel on a CUDA device: the frame is uploaded once, each gaze reads from the resident copy.

The kernel is the host kernel's arithmetic (csrc/crop_grid.h on csrc/crop_core.h), compiled by NVRTC for the device
found; its results are equal bit by bit.  Where host and device share memory (Jetson), nothing is uploaded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop.cuda_compile import crop_cubin
from gog_edge.crop.geometry import Grid, PixelBox, pixel_box
from gog_edge.crop.gpu import DeviceArray, GpuDriver, GpuMemory
from gog_edge.crop.kernel import check_side, checked_box
from gog_edge.crop.normal import Normal, normal_of
from gog_edge.crop.taps import bicubic_taps
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing
from gog_edge.types import Region

TILE = (32, 16)
"""Output pixels of a thread block, (width, height): kTileW and kTileH of csrc/crop_grid.h."""

BLOCK = 256
"""Threads of a block: kBlockThreads of csrc/crop_grid.h."""

_NO_NORMAL = Normal(np.zeros(3, np.float32), np.ones(3, np.float32))


class CudaCropper:
    """Cuts crops on one device.  Thread-safe; all work goes to the driver's stream in the order of the calls."""

    def __init__(
        self, driver: GpuDriver, *, resident_bytes: int = 512 << 20, cubin_directory: Path | None = None
    ) -> None:
        """Compile (or load from the cache) and load the kernel.

        Args:
            driver: the device; `cuda_driver.open_driver()` for a real one.
            resident_bytes: frames kept on the device, least recently used first out; the newest always stays.
            cubin_directory: cache of compiled kernels; None takes the user's.

        Raises:
            EngineError: NVRTC is missing or fails, or the driver refuses the module.
        """
        self.driver = driver
        self._kernel = driver.load(crop_cubin(driver.arch, cubin_directory), "gog_crop")
        self._limit = resident_bytes
        self._frames: OrderedDict[str, GpuMemory] = OrderedDict()
        self._tables: GpuMemory | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> CudaCropper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the resident frames and the tables; the cropper can be used again."""
        with self._lock:
            for memory in self._frames.values():
                memory.close()
            self._frames.clear()
            if self._tables is not None:
                self._tables.close()
                self._tables = None

    def keep(self, frame: Frame) -> None:
        """Bring `frame` to the device now, so that the first gaze does not wait for it."""
        with self._lock:
            self._resident(frame)

    def crop_patches(
        self,
        frame: Frame,
        region: Region | None,
        grid: Grid,
        preprocessing: Preprocessing,
        *,
        out: DeviceArray | None = None,
    ) -> DeviceArray:
        """As `gog_edge.crop.crop_patches`, with the result [n, 3 * p * p] float32 left on the device.

        Returns when the work is queued: later work on the driver's stream sees the result.

        Raises:
            RegionError, ImageError: as the host version.
            UsageError: `out` has another shape or type.
            EngineError: the driver failed.
        """
        box = checked_box(frame, region, grid, preprocessing)
        shape = (grid.patches, preprocessing.patch_values)
        if out is not None and (out.shape != shape or out.dtype != np.float32):
            raise UsageError(f"out is {out.dtype} {out.shape}; float32 {shape} is needed")
        height, width = grid.pixels(preprocessing.patch_size)
        with self._lock:
            if out is None:
                dtype: np.dtype[np.float32] = np.dtype(np.float32)
                out = DeviceArray(self.driver.allocate(4 * shape[0] * shape[1]), shape, dtype)
            self._launch(
                frame, box, width, height, preprocessing.patch_size, preprocessing.merge_size,
                normal_of(preprocessing), out.memory.address, 0,
            )  # fmt: skip
        return out

    def crop_image(self, frame: Frame, region: Region | None, size: tuple[int, int]) -> NDArray[np.uint8]:
        """As `gog_edge.crop.crop_image` for a `size` (height, width), brought back to the host."""
        height, width = size
        check_side(height, width)
        box = pixel_box(region, frame.width, frame.height)
        result = np.empty((height, width, 3), dtype=np.uint8)
        with self._lock:
            memory = self.driver.allocate(result.nbytes)
            try:
                self._launch(frame, box, width, height, 1, 1, _NO_NORMAL, 0, memory.address)
                self.driver.download(result, memory)
            finally:
                memory.close()
        return result

    def to_host(self, array: DeviceArray) -> NDArray[np.float32]:
        """A host copy of patches, after waiting for them."""
        result = np.empty(array.shape, dtype=np.float32)
        with self._lock:
            self.driver.download(result, array.memory)
        return result

    def _launch(
        self,
        frame: Frame,
        box: PixelBox,
        width: int,
        height: int,
        patch: int,
        merge: int,
        normal: Normal,
        patches: int,
        image: int,
    ) -> None:
        across, down = bicubic_taps(box.width, width), bicubic_taps(box.height, height)
        parts = (across.start, across.count, down.start, down.count, across.weight.ravel(), down.weight.ravel())
        tables = self._upload_tables(np.concatenate(parts))
        row_bytes = frame.width * 3
        source = self._resident(frame).address + box.y0 * row_bytes + box.x0 * 3
        grid = (-(-width // TILE[0]), -(-height // TILE[1]))
        self.driver.launch(
            self._kernel,
            grid,
            BLOCK,
            [
                source, np.int64(row_bytes), np.int32(width), np.int32(height), tables, np.int32(across.stride),
                np.int32(down.stride), np.int32(patch), np.int32(merge), *normal.offset, *normal.scale, patches, image,
            ],
        )  # fmt: skip

    def _upload_tables(self, tables: NDArray[np.int32]) -> int:
        """One buffer for all crops: the stream orders its next upload behind the kernel that reads it."""
        if self._tables is None or self._tables.nbytes < tables.nbytes:
            if self._tables is not None:
                self._tables.close()
                self._tables = None
            self._tables = self.driver.allocate(max(tables.nbytes, 1 << 17))
        self.driver.upload(self._tables, tables)
        return self._tables.address

    def _resident(self, frame: Frame) -> GpuMemory:
        memory = self._frames.get(frame.digest)
        if memory is not None:
            self._frames.move_to_end(frame.digest)
            return memory
        size = frame.pixels.nbytes
        while self._frames and sum(m.nbytes for m in self._frames.values()) + size > self._limit:
            self._frames.popitem(last=False)[1].close()
        memory = self.driver.share(frame.pixels)
        if memory is None:
            memory = self.driver.allocate(size)
            self.driver.upload(memory, frame.pixels)
        self._frames[frame.digest] = memory
        return memory
