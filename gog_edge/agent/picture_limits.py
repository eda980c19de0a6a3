"""How large a dialect shows pictures: its `[limits]`, with the caller's options in their place."""

from __future__ import annotations

from dataclasses import replace

from gog_edge.agent.options import RunOptions
from gog_edge.dialects import DialectLimits
from gog_edge.types import PixelLimits


def image_limits(limits: DialectLimits, options: RunOptions) -> PixelLimits:
    """Of the user's images."""
    return _with(limits.image, options.image_min_pixels, options.image_max_pixels)


def crop_limits(limits: DialectLimits, options: RunOptions) -> PixelLimits:
    """Of crops."""
    return _with(limits.crop, options.crop_min_pixels, options.crop_max_pixels)


def _with(limits: PixelLimits, least: int, most: int) -> PixelLimits:
    return replace(limits, min_pixels=least or limits.min_pixels, max_pixels=most or limits.max_pixels)
