"""Every coordinate frame: round trips (property), stated rules for bad boxes, nested and odd spellings."""

# ruff: noqa: E501 - literal calls and replies

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge import dialects
from gog_edge.dialects.coordinates import CoordinateFrame, boxes_of, read_box, split_box
from gog_edge.dialects.hooks import HOOKS, Hooks, OpenSearchVL, PixelReasoner, VragRL
from gog_edge.dialects.spec import CoordinateSpec
from gog_edge.errors import RegionError
from gog_edge.families import named
from gog_edge.types import Region, RegisteredImage

FRAMES = ("unit", "thousand", "shown", "original")
WHOLE = RegisteredImage(0, 1000, 800, 960, 768, None, 0)
CROP = RegisteredImage(3, 1000, 800, 448, 352, Region(200, 100, 600, 400), 0)


def frame(name: str, hooks: Hooks | None = None, **rules) -> CoordinateFrame:
    spec = dataclasses.replace(CoordinateSpec(), frame=name, **rules)
    return CoordinateFrame(spec, name, hooks or Hooks())  # type: ignore[arg-type]


@st.composite
def images(draw) -> RegisteredImage:
    width, height = draw(st.integers(32, 8000)), draw(st.integers(32, 8000))
    shown = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    region = None
    if draw(st.booleans()):
        x0, y0 = draw(st.floats(0, width - 20)), draw(st.floats(0, height - 20))
        region = Region(x0, y0, draw(st.floats(x0 + 10, width)), draw(st.floats(y0 + 10, height)))
    return RegisteredImage(0, width, height, shown[0] * 32, shown[1] * 32, region, 0)


@st.composite
def boxes(draw, image: RegisteredImage) -> Region:
    view = image.view
    x0, y0 = draw(st.floats(0, 0.95)), draw(st.floats(0, 0.95))
    x1, y1 = draw(st.floats(x0 + 0.04, 1)), draw(st.floats(y0 + 0.04, 1))
    return Region(
        view.x0 + x0 * view.width, view.y0 + y0 * view.height, view.x0 + x1 * view.width, view.y0 + y1 * view.height
    )


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(FRAMES), st.sampled_from(["", "opensearch-vl"]))
def test_numbers_round_trip(data, name: str, hooks: str) -> None:
    image = data.draw(images())
    region = data.draw(boxes(image))
    frame_ = frame(name, HOOKS[hooks]())
    back = frame_.to_region(frame_.hooks.numbers(frame_._corners(region, image)), image)
    assert back.as_tuple() == pytest.approx(region.as_tuple(), rel=1e-6, abs=1e-6 * max(image.width, image.height))


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(FRAMES), st.sampled_from(["", "opensearch-vl"]))
def test_written_boxes_round_trip_within_a_unit(data, name: str, hooks: str) -> None:
    """What `format_box` writes reads back as a box at most one unit of the frame away, inside the image."""
    image = data.draw(images())
    region = data.draw(boxes(image))
    decimals = 4 if name == "unit" else 0
    frame_ = frame(name, HOOKS[hooks](), decimals=decimals)
    back = frame_.to_region(read_box(frame_.format_box(region, image)), image)
    width, height = frame_.extent(image)
    unit = 10.0**-decimals
    for got, wanted, scale in zip(
        back.as_tuple(), region.as_tuple(), [image.view.width / width, image.view.height / height] * 2
    ):
        assert abs(got - wanted) <= 1.01 * unit * scale
    view = image.view
    assert view.x0 - 1e-6 <= back.x0 < back.x1 <= view.x1 + 1e-6
    assert view.y0 - 1e-6 <= back.y0 < back.y1 <= view.y1 + 1e-6


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=0, max_size=6),
    st.sampled_from(FRAMES),
    st.sampled_from(["swap", "refuse"]),
    st.sampled_from(sorted(HOOKS)),
)
def test_any_numbers_are_a_box_inside_the_image_or_a_region_error(numbers, name, inverted, hooks) -> None:
    for image in (WHOLE, CROP):
        try:
            region = frame(name, HOOKS[hooks](), inverted=inverted, min_side=28).to_region(numbers, image)
        except RegionError:
            continue
        view = image.view
        assert view.x0 - 1e-6 <= region.x0 < region.x1 <= view.x1 + 1e-6
        assert view.y0 - 1e-6 <= region.y0 < region.y1 <= view.y1 + 1e-6


def test_frames_of_a_crop_are_relative_to_it() -> None:
    assert frame("thousand").to_region([0, 0, 500, 500], CROP) == Region(200, 100, 400, 250)
    assert frame("original").to_region([0, 0, 200, 150], CROP) == Region(200, 100, 400, 250)
    assert frame("shown").to_region([0, 0, 224, 176], CROP) == Region(200, 100, 400, 250)
    assert frame("unit").to_region([0, 0, 0.5, 0.5], CROP) == Region(200, 100, 400, 250)


def test_resized_is_not_original() -> None:
    """The classic 4 % mistake: pixels of the resized image applied to the original."""
    assert frame("shown").to_region([96, 96, 480, 480], WHOLE) == Region(100, 100, 500, 500)
    assert frame("original").to_region([96, 96, 480, 480], WHOLE) == Region(96, 96, 480, 480)


def test_rules() -> None:
    assert frame("original").to_region([500, 400, 100, 80], WHOLE) == Region(100, 80, 500, 400)
    with pytest.raises(RegionError, match="inverted"):
        frame("original", inverted="refuse").to_region([500, 400, 100, 80], WHOLE)
    with pytest.raises(RegionError, match="empty"):
        frame("original").to_region([10, 10, 10, 40], WHOLE)
    with pytest.raises(RegionError, match="outside"):
        frame("original").to_region([2000, 10, 2100, 40], WHOLE)
    assert frame("original").to_region([900, 10, 1100, 40], WHOLE) == Region(900, 10, 1000, 40)
    assert frame("original", VragRL()).to_region([100, 100, 200, 200], WHOLE) == Region(44, 44, 256, 256)
    assert frame("unit", PixelReasoner()).to_region([0.5, 0.5, 0.6, 0.6], WHOLE) == Region(400, 320, 700, 560)
    assert frame("original", min_side=32).to_region([100, 100, 110, 400], WHOLE) == Region(89, 100, 121, 400)
    grown = frame("original", min_side=32, min_side_rule="scale").to_region([400, 100, 410, 200], WHOLE)
    assert grown == Region(389, 0, 421, 320)
    assert frame("original", min_side=32).to_region([0, 0, 10, 10], WHOLE) == Region(0, 0, 32, 32)
    cut = [10.5, 11.5, 500.4, 799.9]
    assert frame("original", whole_pixels="nearest").to_region(cut, WHOLE) == Region(10, 12, 500, 800)
    assert frame("original", whole_pixels="down").to_region(cut, WHOLE) == Region(10, 11, 500, 799)
    assert frame("original", whole_pixels="down").to_region([0, 0, 400, 300], CROP) == Region(200, 100, 599, 399)
    assert frame("original", whole_pixels="cut").to_region(cut, WHOLE) == Region(10, 11, 500, 799)
    assert frame("original", whole_pixels="cut").to_region([0, 0, 400, 300], CROP) == Region(200, 100, 600, 400)
    small = frame("original", whole_pixels="nearest", min_side=32).to_region([10.1, 11, 10.4, 12], WHOLE)
    assert (small.width, small.height) == (32, 32)  # grown before it could vanish
    for rule in ("nearest", "cut", "down"):
        with pytest.raises(RegionError, match="no whole pixel"):
            frame("original", whole_pixels=rule).to_region([10.1, 10, 10.4, 40], WHOLE)
    with pytest.raises(RegionError, match="smaller"):
        frame("original", min_side=32, min_side_rule="refuse").to_region([0, 0, 10, 10], WHOLE)
    with pytest.raises(RegionError, match="times as long"):
        frame("original", max_aspect=100).to_region([0, 0, 1000, 5], WHOLE)
    assert frame("unit", PixelReasoner()).to_region([200, 160, 400, 320], WHOLE) == Region(100, 80, 500, 400)
    assert frame("original", OpenSearchVL()).to_region([100, 80, 400, 320], WHOLE) == Region(100, 80, 500, 400)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3, 4], [[1, 2, 3, 4]], [[[1, 2, 3, 4]]], (1.0, "2", 3, 4), "[1, 2, 3, 4]", "1,2,3,4", "(1, 2), (3, 4)", "1 2 3 4",
        {"x1": 1, "y1": 2, "x2": 3, "y2": 4},
    ],
)  # fmt: skip
def test_spellings_of_a_box(value) -> None:
    assert read_box(value) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "value", [None, True, [1, 2, 3], [1, 2, 3, True], "1,2,3", ["a", 1, 2, 3], [1e400, 0, 0, 0], {}]
)
def test_no_boxes(value) -> None:
    with pytest.raises(RegionError):
        read_box(value)


def test_boxes_among_words() -> None:
    assert split_box("the [1, 2, 3, 4] red car") == ([1, 2, 3, 4], "the   red car".strip())
    assert split_box("the red car") == (None, "the red car")
    assert boxes_of([[1, 2, 3, 4], [5, 6, 7, 8]]) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert boxes_of([1, 2, 3, 4]) == [[1, 2, 3, 4]]


def test_a_familys_frame_holds_where_the_dialect_leaves_it_to_the_family() -> None:
    assert [named(name).box_frame for name in ("qwen3_vl", "qwen2_5_vl")] == ["thousand", "shown"]
    assert dialects.load("gog", frame="shown").frame.frame == "shown"
    assert dialects.load("mini-o3").frame.frame == dialects.load("mini-o3", frame="shown").frame.frame == "unit"
