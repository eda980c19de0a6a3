"""The C++ crop kernel through ctypes: built at first use, in one pass over the source, threads by output rows."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.crop.geometry import Grid, PixelBox
from gog_edge.crop.normal import Normal
from gog_edge.errors import EngineError
from gog_edge.native.build import NativeLibrary, NativeStatus, load_status

SOURCES = Path(__file__).with_name("csrc")
"""Where the C++ and CUDA sources lie."""

_MAX_THREADS = 8
_PIXELS_A_THREAD = 400_000  # of the source: about 0.2 ms, several times what waking a helper costs


def status() -> NativeStatus:
    """The loaded library, or why there is none; builds it on the first call (about 2 s with g++)."""
    sources, flags = [SOURCES / "crop_cpu.cpp"], ["-ffp-contract=off"]
    return load_status("crop", sources, flags=flags, fallback="Pillow and numpy cut crops, about ten times slower")


class NativeKernel:
    """Calls into one loaded library; safe to use from many threads at once (a call shares nothing)."""

    def __init__(self, library: NativeLibrary) -> None:
        self.simd: str = library.function("gog_crop_simd", ctypes.c_char_p)().decode()
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        self._crop: Any = library.function(
            "gog_crop", integer, pointer, ctypes.c_int64, pointer, integer, integer, pointer, pointer, pointer,
            integer, pointer, pointer,
        )  # fmt: skip

    def patches(
        self,
        pixels: NDArray[np.uint8],
        box: PixelBox,
        grid: Grid,
        patch: int,
        merge: int,
        normal: Normal,
        out: NDArray[np.float32],
        threads: int | None,
    ) -> None:
        """Write the crop's patches into `out` [n, 3 * patch * patch]; arguments were checked by the caller."""
        height, width = grid.pixels(patch)
        self._call(pixels, box, width, height, patch, merge, normal.values, out.ctypes.data, None, threads)

    def image(
        self, pixels: NDArray[np.uint8], box: PixelBox, width: int, height: int, threads: int | None
    ) -> NDArray[np.uint8]:
        """The resized crop as [height, width, 3]."""
        out = np.empty((height, width, 3), dtype=np.uint8)
        self._call(pixels, box, width, height, 1, 1, np.zeros(6, np.float32), None, out.ctypes.data, threads)
        return out

    def _call(
        self,
        pixels: NDArray[np.uint8],
        box: PixelBox,
        width: int,
        height: int,
        patch: int,
        merge: int,
        normal: NDArray[np.float32],
        patches: int | None,
        image: int | None,
        threads: int | None,
    ) -> None:
        sizes = np.array([box.width, box.height, width, height], dtype=np.int32)
        row_bytes = pixels.strides[0]
        source = pixels.ctypes.data + box.y0 * row_bytes + box.x0 * 3
        count = _threads(threads, box.width * box.height)
        code = self._crop(
            source, row_bytes, sizes.ctypes.data, patch, merge, normal.ctypes.data, patches, image, count, None, None
        )
        if code == 1:
            raise MemoryError(f"no memory for the crop kernel ({box.width}x{box.height} to {width}x{height})")
        if code != 0:
            raise EngineError(f"the crop kernel failed (code {code}) on {box.width}x{box.height} to {width}x{height}")


def _threads(wanted: int | None, source_pixels: int) -> int:
    """`wanted`, or as many as the crop keeps busy out of those this process may have (at most 8)."""
    if wanted is not None:
        return max(1, wanted)
    return max(1, min(usable_threads(), _MAX_THREADS, source_pixels // _PIXELS_A_THREAD))
