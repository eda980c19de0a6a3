"""Values: regions refuse what is not a box, and geometry holds for all of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gog_edge.errors import RegionError
from gog_edge.types import Region, Usage

coordinate = st.floats(-5000, 5000, allow_nan=False)
size = st.floats(0.01, 5000, allow_nan=False)
regions = st.builds(lambda x, y, w, h: Region(x, y, x + w, y + h), coordinate, coordinate, size, size)


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (5, 0, 1, 5), (0, 5, 5, 1), (math.nan, 0, 1, 1), (0, 0, math.inf, 1)])
def test_a_box_that_is_none_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(RegionError):
        Region(*box)


@given(regions)
def test_clamp_is_idempotent_and_stays_inside(region: Region) -> None:
    try:
        clamped = region.clamp(640, 480)
    except RegionError:
        assert region.x1 <= 0 or region.y1 <= 0 or region.x0 >= 640 or region.y0 >= 480
        return
    assert 0 <= clamped.x0 < clamped.x1 <= 640
    assert 0 <= clamped.y0 < clamped.y1 <= 480
    assert clamped.clamp(640, 480) == clamped


@given(regions, regions)
def test_iou_is_symmetric_and_bounded(a: Region, b: Region) -> None:
    assert a.iou(b) == pytest.approx(b.iou(a))
    assert 0 <= a.iou(b) <= 1 + 1e-9
    assert a.iou(a) == pytest.approx(1)


@given(regions, st.floats(0.1, 10), st.floats(0.1, 10))
def test_scale_changes_the_area_by_both_factors(region: Region, sx: float, sy: float) -> None:
    assert region.scale(sx, sy).area == pytest.approx(region.area * sx * sy, rel=1e-4, abs=1e-3)


def test_usage_adds_field_by_field() -> None:
    total = Usage(prompt_tokens=3, searches=1) + Usage(prompt_tokens=4, cached_images=2)
    assert (total.prompt_tokens, total.searches, total.cached_images) == (7, 1, 2)
