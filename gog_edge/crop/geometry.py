"""Which pixels a region means, and what size the processor resizes them to.

Rules that the policy was trained with, from transformers' Qwen2-VL image processor (Qwen2.5-VL and Qwen3-VL use
the same): sides are multiples of `factor`, rounded half to even, and the area lies between two pixel limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gog_edge.errors import ImageError, RegionError
from gog_edge.manifest import Preprocessing
from gog_edge.types import Region

MAX_ASPECT = 200
"""Longest side over shortest side beyond which the processor refuses an image."""

_SLIVER = 1e-3  # of a pixel: less than this is the rounding of a coordinate conversion, not intended


@dataclass(frozen=True)
class PixelBox:
    """Whole pixels of a frame, half-open: columns x0 .. x1 - 1, rows y0 .. y1 - 1; never empty."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0


@dataclass(frozen=True)
class Grid:
    """Size of a resized image in patches, both sides multiples of the merge size."""

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Rows of the `patches` input: one a patch."""
        return self.rows * self.columns

    def tokens(self, merge_size: int) -> int:
        """Image tokens the decoder sees: one for each merge_size x merge_size patches."""
        return self.patches // merge_size**2

    def pixels(self, patch_size: int) -> tuple[int, int]:
        """(height, width) of the resized image."""
        return self.rows * patch_size, self.columns * patch_size

    @classmethod
    def fit(
        cls,
        width: int,
        height: int,
        preprocessing: Preprocessing,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Grid:
        """The grid that the processor gives `width` x `height` pixels; the limits default to the policy's own.

        Raises:
            ImageError: the sides are more than 200 : 1, or the limits are not positive and in order.
        """
        low = preprocessing.min_pixels if min_pixels is None else min_pixels
        high = preprocessing.max_pixels if max_pixels is None else max_pixels
        resized = smart_resize(height, width, preprocessing.factor, low, high)
        return cls(resized[0] // preprocessing.patch_size, resized[1] // preprocessing.patch_size)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) after the processor's resize: multiples of `factor`, area within the limits.

    The arithmetic is transformers' `smart_resize`, operation by operation: Python's `round` (half to even), and a
    side of at least one factor, for which a very long image may end beyond `max_pixels`.

    Raises:
        ImageError: a side is not positive, the sides are more than 200 : 1, or the limits are not in order.
    """
    if height < 1 or width < 1:
        raise ImageError(f"an image of {width}x{height} pixels can't be resized: both sides must be at least 1")
    if not 0 < min_pixels <= max_pixels:
        raise ImageError(f"pixel limits {min_pixels}..{max_pixels} are not positive and in order")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ImageError(f"an image of {width}x{height} pixels is more than {MAX_ASPECT}:1; crop or pad it first")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def scale_between(
    width: int, height: int, *, min_pixels: int = 0, max_pixels: int = 0, min_side: int = 0
) -> tuple[int, int]:
    """(width, height) after the step that some systems take before the processor; 0 is no bound.

    One factor for both sides, which are cut to whole pixels: down to `max_pixels`, then up to `min_pixels`, then until
    the short side has `min_side` (with a pixel to spare).  The arithmetic is that of `process_image` in the code of
    MMSearch-R1, VRAG-RL, Mini-o3 (which has the third rule) and WebWatcher, operation by operation; a side keeps at
    least one pixel.
    """
    if max_pixels and width * height > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        width, height = max(int(width * factor), 1), max(int(height * factor), 1)
    if width * height < min_pixels:
        factor = math.sqrt(min_pixels / (width * height))
        width, height = int(width * factor), int(height * factor)
    if min(width, height) < min_side:
        factor = min_side / min(width, height)
        width, height = int(width * factor + 1), int(height * factor + 1)
    return width, height


def pixel_box(region: Region | None, width: int, height: int) -> PixelBox:
    """The pixels of a `width` x `height` frame that `region` touches; None means the whole frame.

    The region is cut to the frame, then its edges move outwards to whole pixels, except that a pixel touched by
    less than 1/1000 of its side does not count (0-1000 coordinates seldom convert to whole numbers exactly).  A
    region thinner than that takes the pixel it lies in.

    Raises:
        RegionError: nothing of the region lies inside the frame.
    """
    if region is None:
        return PixelBox(0, 0, width, height)
    inside = region.clamp(width, height)
    x0, x1 = _span(inside.x0, inside.x1, width)
    y0, y1 = _span(inside.y0, inside.y1, height)
    return PixelBox(x0, y0, x1, y1)


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    first, stop = math.floor(low + _SLIVER), math.ceil(high - _SLIVER)
    if stop <= first:
        first = min(math.floor((low + high) / 2), size - 1)
        stop = first + 1
    return first, stop


def region_grid(
    region: Region | None,
    width: int,
    height: int,
    preprocessing: Preprocessing,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Grid:
    """The grid of a crop of a `width` x `height` frame (None: of the whole frame), by the processor's rules.

    Raises:
        RegionError: the region lies outside of the frame, or its pixels are more than 200 : 1.
        ImageError: the same of the whole frame, or bad pixel limits.
    """
    box = pixel_box(region, width, height)
    if region is not None and max(box.width, box.height) > MAX_ASPECT * min(box.width, box.height):
        raise RegionError(
            f"box {region.as_tuple()} covers {box.width}x{box.height} pixels, more than {MAX_ASPECT}:1; widen it"
        )
    return Grid.fit(box.width, box.height, preprocessing, min_pixels=min_pixels, max_pixels=max_pixels)
