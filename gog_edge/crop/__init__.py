"""Cut a region out of the resident frame and make it the vision graph's input, in one pass over its pixels."""

from __future__ import annotations

from gog_edge.crop.geometry import Grid, PixelBox, pixel_box, region_grid, scale_between, smart_resize
from gog_edge.crop.kernel import Backend, backend, crop_image, crop_patches

__all__ = [
    "Backend",
    "Grid",
    "PixelBox",
    "backend",
    "crop_image",
    "crop_patches",
    "pixel_box",
    "region_grid",
    "scale_between",
    "smart_resize",
]
