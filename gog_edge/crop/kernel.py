"""From a frame and a region to the patches of the vision graph, or to a picture of the crop.

Numbers: what PIL gives for `image.crop(box).resize(size, BICUBIC)` with the horizontal pass first (every Pillow
before 13; torch's uint8 resize, behind transformers' fast processor, is within one 8-bit step but for isolated
pixels that are two off), then (v / 255 - mean) / std in float32.
The native kernel, the Pillow path, and the CUDA kernel give the same bits, for any number of threads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop import native, reference
from gog_edge.crop.geometry import Grid, PixelBox, pixel_box
from gog_edge.crop.normal import normal_of
from gog_edge.errors import ImageError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing
from gog_edge.types import Region

_MAX_SIDE = 1 << 16  # of a resized crop


@dataclass(frozen=True)
class Backend:
    """What cuts crops in this process: `simd` names the instruction set of the native kernel (empty for numpy),
    `reason` says why it is not native (empty when it is)."""

    name: Literal["native", "numpy"]
    simd: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"native ({self.simd})" if self.name == "native" else f"numpy ({self.reason})"


def backend() -> Backend:
    """Which kernel this process uses and why; compiles the native one if that was not done yet."""
    kernel = _native_kernel()
    if kernel is not None:
        return Backend("native", simd=kernel.simd)
    return Backend("numpy", reason=native.status().reason or "unknown")


@functools.lru_cache(maxsize=1)
def _native_kernel() -> native.NativeKernel | None:
    library = native.status().library
    return None if library is None else native.NativeKernel(library)


def crop_patches(
    frame: Frame,
    region: Region | None,
    grid: Grid,
    preprocessing: Preprocessing,
    *,
    threads: int | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Cut `region` (None: everything) out of `frame`, resize it to `grid` and return the vision graph's `patches`.

    Args:
        region: in pixels of the frame; `pixel_box` says which whole pixels it means.
        grid: rows x columns of patches to resize to, usually `region_grid(...)`; the aspect is the caller's choice.
        threads: None picks by the size of the crop; the result does not depend on it.
        out: a C-contiguous float32 [n, 3 * p * p] buffer to write into.

    Returns:
        [n, 3 * p * p] float32, columns (channel, py, px), rows in merge-block order (gh/m, gw/m, m, m).

    Raises:
        RegionError: nothing of the region lies inside the frame.
        ImageError: the grid is empty, or not a multiple of the merge size.
        UsageError: `out` has another shape, type or layout.
    """
    patch, merge = preprocessing.patch_size, preprocessing.merge_size
    box = checked_box(frame, region, grid, preprocessing)
    out = _buffer(out, (grid.patches, preprocessing.patch_values))
    normal = normal_of(preprocessing)
    kernel = _native_kernel()
    if kernel is not None:
        kernel.patches(frame.pixels, box, grid, patch, merge, normal, out, threads)
    else:
        height, width = grid.pixels(patch)
        resized = reference.resize_box(frame.pixels, box, width, height)
        reference.to_patches(resized, grid, patch, merge, normal, out)
    return out


def crop_image(
    frame: Frame, region: Region | None, size: tuple[int, int] | None = None, *, threads: int | None = None
) -> NDArray[np.uint8]:
    """The pixels of `region` as [h, w, 3] uint8, resized to `size` (height, width) if given: for showing crops.

    Raises:
        RegionError: nothing of the region lies inside the frame.
        ImageError: `size` is not positive or beyond 65,536 a side.
    """
    box = pixel_box(region, frame.width, frame.height)
    height, width = (box.height, box.width) if size is None else size
    check_side(height, width)
    if (height, width) == (box.height, box.width):
        return frame.pixels[box.y0 : box.y1, box.x0 : box.x1].copy()
    kernel = _native_kernel()
    if kernel is not None:
        return kernel.image(frame.pixels, box, width, height, threads)
    return reference.resize_box(frame.pixels, box, width, height)


def checked_box(frame: Frame, region: Region | None, grid: Grid, preprocessing: Preprocessing) -> PixelBox:
    """The pixels to cut, after the checks that every kernel build relies on; raises as `crop_patches`."""
    merge = preprocessing.merge_size
    if grid.rows < 1 or grid.columns < 1 or grid.rows % merge or grid.columns % merge:
        raise ImageError(f"a grid of {grid.rows}x{grid.columns} patches is not a positive multiple of {merge}")
    check_side(*grid.pixels(preprocessing.patch_size))
    return pixel_box(region, frame.width, frame.height)


def check_side(height: int, width: int) -> None:
    """Raises ImageError for a resized crop that is empty or absurdly large."""
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise ImageError(f"a crop of {width}x{height} pixels can't be made: both sides must be 1 to {_MAX_SIDE}")


def _buffer(out: NDArray[np.float32] | None, shape: tuple[int, int]) -> NDArray[np.float32]:
    if out is None:
        return np.empty(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise UsageError(f"out is {out.dtype} {out.shape}; a writable C-contiguous float32 {shape} is needed")
    return out
