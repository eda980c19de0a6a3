"""How large a dialect shows pictures: its `[limits]`, with the caller's options in their place."""

from __future__ import annotations

from gog_edge.agent.options import RunOptions
from gog_edge.dialects.spec import Limits
from gog_edge.runtime.vision import PixelLimits


def image_limits(limits: Limits, options: RunOptions) -> PixelLimits:
    """Of the user's images."""
    return PixelLimits(
        options.image_min_pixels or limits.image_min_pixels,
        options.image_max_pixels or limits.image_max_pixels,
        scale_first="image" in limits.scale_first,
        min_side=limits.scale_min_side,
    )


def crop_limits(limits: Limits, options: RunOptions) -> PixelLimits:
    """Of crops."""
    return PixelLimits(
        options.crop_min_pixels or limits.crop_min_pixels,
        options.crop_max_pixels or limits.crop_max_pixels,
        limits.crop_upscale,
        scale_first="crop" in limits.scale_first,
        min_side=limits.scale_min_side,
    )


def thumbnail_limits(limits: Limits) -> PixelLimits:
    """Of the pictures of results."""
    return PixelLimits(
        limits.thumbnail_min_pixels,
        limits.thumbnail_max_pixels,
        scale_first="thumbnail" in limits.scale_first,
        min_side=limits.scale_min_side,
    )
