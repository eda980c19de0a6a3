"""Boxes to pixels, and sizes by the processor's rules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.crop import Grid, PixelBox, pixel_box, region_grid, smart_resize
from gog_edge.errors import ImageError, RegionError
from gog_edge.types import Region
from tests.crop.pictures import QWEN3, QWEN25

SIDES = st.integers(1, 5000)


def test_half_way_rounds_to_the_even_multiple() -> None:
    # 336 / 32 is 10.5 and becomes 10 (llama.cpp and OpenVINO make 11); 368 / 32 is 11.5 and becomes 12
    assert smart_resize(336, 448, 32, 4096, 1 << 24) == (320, 448)
    assert smart_resize(368, 448, 32, 4096, 1 << 24) == (384, 448)


def test_a_crop_of_the_agent_job_has_140_tokens() -> None:
    grid = Grid.fit(448, 336, QWEN3)
    assert (grid.rows, grid.columns, grid.tokens(2)) == (20, 28, 140)
    assert grid.pixels(16) == (320, 448)


@settings(deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    factor=st.sampled_from((28, 32)),
    low=st.integers(1, 1 << 18),
    more=st.integers(0, 1 << 22),
)
def test_smart_resize_is_that_of_transformers(height: int, width: int, factor: int, low: int, more: int) -> None:
    reference = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError):
            reference(height, width, factor, low, low + more)
        with pytest.raises(ImageError, match="200:1"):
            smart_resize(height, width, factor, low, low + more)
        return
    ours = smart_resize(height, width, factor, low, low + more)
    assert ours == reference(height, width, factor, low, low + more)
    assert min(ours) >= factor


@settings(deadline=None)
@given(height=SIDES, width=SIDES)
def test_a_fitted_grid_is_whole_and_within_the_limits(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    grid = Grid.fit(width, height, QWEN25)
    assert grid.rows % 2 == 0 and grid.columns % 2 == 0
    rows, columns = grid.pixels(14)
    assert rows * columns >= QWEN25.min_pixels
    assert rows * columns <= QWEN25.max_pixels or 28 in (rows, columns)


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-5, 100), (200, 100)])
def test_limits_out_of_order_are_refused(low: int, high: int) -> None:
    with pytest.raises(ImageError, match="pixel limits"):
        smart_resize(100, 100, 28, low, high)


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(ImageError, match="at least 1"):
        smart_resize(0, 100, 28, 1, 100)


def test_a_side_is_at_least_one_factor_even_beyond_the_limit() -> None:
    assert smart_resize(30, 3000, 28, 784, 28 * 28 * 4) == (28, 560)
    assert smart_resize(10, 1000, 28, 56 * 56, 1 << 20) == (28, 560)


def test_no_region_is_the_whole_frame() -> None:
    assert pixel_box(None, 640, 480) == PixelBox(0, 0, 640, 480)


def test_a_region_takes_the_pixels_it_touches() -> None:
    assert pixel_box(Region(1.5, 2.0, 3.25, 4.0), 10, 10) == PixelBox(1, 2, 4, 4)


def test_a_region_is_cut_to_the_frame() -> None:
    assert pixel_box(Region(-5, -5, 500, 7), 10, 20) == PixelBox(0, 0, 10, 7)


@pytest.mark.parametrize("box", [(10, 0, 20, 5), (-5, 0, 0, 5), (0, 5, 5, 9), (0, -3, 5, 0)])
def test_a_region_outside_of_the_frame_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(RegionError, match="outside"):
        pixel_box(Region(*box), 10, 5)


@settings(deadline=None)
@given(width=SIDES, x0=st.integers(0, 1000), x1=st.integers(0, 1000))
def test_relative_coordinates_survive_the_conversion(width: int, x0: int, x1: int) -> None:
    """0-1000 coordinates that mean whole pixels give those pixels, though the products are not exact."""
    if x1 <= x0 or (x0 * width) % 1000 or (x1 * width) % 1000:
        return
    region = Region(x0 / 1000 * width, 0, x1 / 1000 * width, 1)
    assert pixel_box(region, width, 1) == PixelBox(x0 * width // 1000, 0, x1 * width // 1000, 1)


@settings(deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    corner=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    size=st.tuples(st.floats(1e-9, 2), st.floats(1e-9, 2)),
)
def test_a_pixel_box_is_never_empty_and_covers_the_region(
    width: int, height: int, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    x0, y0 = corner[0] * width, corner[1] * height
    x1, y1 = x0 + size[0] * width, y0 + size[1] * height
    if x1 <= x0 or y1 <= y0 or x0 >= width or y0 >= height:
        return
    box = pixel_box(Region(x0, y0, x1, y1), width, height)
    assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
    assert box.x0 <= x0 + 1e-3 and box.x1 >= min(x1, width) - 1e-3
    assert box.width <= math.ceil(min(x1, width)) - math.floor(x0)


@pytest.mark.parametrize("x", [0.0, 4.9999, 5.0, 9.9995])
def test_a_hair_takes_the_pixel_it_lies_in(x: float) -> None:
    box = pixel_box(Region(x, 0, x + 1e-4, 3), 10, 3)
    assert box.width == 1 and box.x0 in (math.floor(x), math.floor(x + 1e-4))


def test_a_thin_region_is_refused_by_the_processors_limit() -> None:
    with pytest.raises(RegionError, match="200:1"):
        region_grid(Region(0, 0, 1, 300), 400, 400, QWEN3)
    with pytest.raises(ImageError, match="200:1"):
        region_grid(None, 1, 300, QWEN3)


def test_a_region_may_have_its_own_budget() -> None:
    region = Region(0, 0, 2000, 1500)
    assert region_grid(region, 4000, 3000, QWEN3).patches < QWEN3.max_pixels // 256
    small = region_grid(region, 4000, 3000, QWEN3, max_pixels=64 * 1024)
    assert small.patches <= 256
    large = region_grid(region, 4000, 3000, QWEN3, max_pixels=1 << 22)
    assert large.pixels(16) == (1504, 1984) or large.pixels(16) == (1504, 2016)
