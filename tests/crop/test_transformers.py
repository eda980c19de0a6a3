"""The patches are those of transformers' image processors, with the temporal axis folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gog_edge.crop import crop_image, crop_patches, pixel_box, region_grid
from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing
from gog_edge.types import Region
from tests.crop.pictures import BOTH, QWEN3, QWEN25, eight_bit, noise, scene

CASES: list[tuple[int, int, Region | None]] = [
    (480, 640, None),
    (333, 501, None),
    (97, 61, None),
    (30, 41, None),  # upscale
    (29, 2000, None),
    (700, 1100, Region(13.2, 17, 640, 480)),
    (700, 1100, Region(900, 500, 1100, 700)),
    (700, 1100, Region(0, 0, 33, 29)),
    (700, 1100, Region(500, 300, 502, 303)),
]


def processed(processor: Any, image: Any, pre: Preprocessing, grid: tuple[int, int]) -> np.ndarray:
    """pixel_values [n, 3 * t * p * p] of the processor with its temporal slices, which must be equal, folded."""
    out = processor(image, return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, *grid]]
    n, t, p = grid[0] * grid[1], pre.temporal_patch_size, pre.patch_size
    slices = np.asarray(out["pixel_values"], dtype=np.float32).reshape(n, 3, t, p * p)
    assert (slices == slices[:, :, :1]).all()
    return slices[:, :, 0].reshape(n, 3 * p * p)


def settings_of(pre: Preprocessing) -> dict[str, Any]:
    return {
        "patch_size": pre.patch_size,
        "merge_size": pre.merge_size,
        "temporal_patch_size": pre.temporal_patch_size,
        "size": {"shortest_edge": pre.min_pixels, "longest_edge": pre.max_pixels},
        "image_mean": list(pre.image_mean),
        "image_std": list(pre.image_std),
    }


def horizontal_first(frame: Frame, region: Region | None, size: tuple[int, int]) -> bool:
    """Whether this Pillow resizes this crop in the order that the versions before 13 did."""
    from PIL import Image

    box = pixel_box(region, frame.width, frame.height)
    image = frame.image().crop((box.x0, box.y0, box.x1, box.y1))
    return np.array_equal(
        crop_image(frame, region, size), np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    )


@pytest.mark.parity
@pytest.mark.parametrize("pre", BOTH, ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize(("height", "width", "region"), CASES)
def test_equal_to_the_pil_processor(height: int, width: int, region: Region | None, pre: Preprocessing) -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = module.Qwen2VLImageProcessorPil(**settings_of(pre))
    for frame in (scene(height, width), noise(height, width)):
        box = pixel_box(region, width, height)
        image = frame.image().crop((box.x0, box.y0, box.x1, box.y1))
        grid = region_grid(region, width, height, pre)
        theirs = processed(processor, image, pre, (grid.rows, grid.columns))
        off = np.abs(eight_bit(crop_patches(frame, region, grid, pre), pre) - eight_bit(theirs, pre))
        if horizontal_first(frame, region, grid.pixels(pre.patch_size)):
            assert off.max() < 1e-3  # the same 8-bit pixels
        else:
            # Pillow 13 went vertically first: the 8-bit rounding between the passes falls elsewhere, so
            # pictures that do not clip stay within a step but for isolated pixels
            assert np.mean(off > 1.001) < (2e-4 if frame == scene(height, width) else 0.1)


@pytest.mark.parity
@pytest.mark.parametrize("pre", BOTH, ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize(("height", "width", "region"), CASES)
def test_one_step_from_the_fast_processors_resize(
    height: int, width: int, region: Region | None, pre: Preprocessing
) -> None:
    """torchvision resizes uint8 with torch's interpolate: 16-bit weights, so each pass may round the other way."""
    torch = pytest.importorskip("torch")
    for frame in (scene(height, width), noise(height, width)):
        box = pixel_box(region, width, height)
        grid = region_grid(region, width, height, pre)
        size = grid.pixels(pre.patch_size)
        crop = torch.from_numpy(frame.pixels[box.y0 : box.y1, box.x0 : box.x1].transpose(2, 0, 1).copy())[None]
        theirs = torch.nn.functional.interpolate(crop, size=size, mode="bicubic", antialias=True, align_corners=False)
        off = np.abs(crop_image(frame, region, size).astype(int) - theirs[0].permute(1, 2, 0).numpy())
        assert off.max() <= 2 and np.sum(off == 2) <= 4 + 1e-5 * off.size and np.mean(off == 1) < 0.02


@pytest.mark.parity
@pytest.mark.parametrize("pre", (QWEN25, QWEN3), ids=["qwen2.5", "qwen3"])
def test_one_step_from_the_fast_processor(pre: Preprocessing) -> None:
    pytest.importorskip("torchvision")
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    processor = module.Qwen2VLImageProcessor(**settings_of(pre))
    frame = scene(700, 1100)
    grid = region_grid(None, 1100, 700, pre)
    theirs = processed(processor, frame.image(), pre, (grid.rows, grid.columns))
    off = np.abs(eight_bit(crop_patches(frame, None, grid, pre), pre) - eight_bit(theirs, pre))
    assert off.max() < 2.001 and np.sum(off > 1.001) <= 4 + 1e-5 * off.size
