"""Image registries: user-only and all, indices, names, aliases, out of range."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from gog_edge import dialects
from gog_edge.dialects.hooks import QwenAgent, WebWatcher
from gog_edge.dialects.images import ImageReferenceError, reference, resolve_image
from gog_edge.dialects.spec import ImagesSpec
from gog_edge.types import ActionKind, Region, RegisteredImage

USER = [RegisteredImage(0, 100, 80, 96, 64, None, 0), RegisteredImage(1, 100, 80, 96, 64, None, 1)]
CROP = RegisteredImage(2, 100, 80, 64, 64, Region(10, 10, 60, 60), 0)
THUMBNAIL = RegisteredImage(3, 64, 64, 64, 64, None, 3)
ALL = [*USER, CROP, THUMBNAIL]


def spec(**keys) -> ImagesSpec:
    return dataclasses.replace(ImagesSpec(), **keys)


@pytest.mark.parametrize(
    ("keys", "value", "wanted"),
    [
        ({"reference": "index0"}, 2, 2),
        ({"reference": "index0"}, "2", 2),
        ({"reference": "index0"}, 2.0, 2),
        ({"reference": "index0"}, [3], 3),
        ({"reference": "index1"}, 1, 0),
        ({"reference": "img_{n}", "first": 1}, "img_3", 2),
        ({"reference": "img_{n}", "first": 1}, 3, 2),
        ({"reference": "observation_{n}", "aliases": {"original_image": 0}}, "original_image", 0),
        ({"reference": "observation_{n}", "aliases": {"original_image": 0}}, " observation_2 ", 2),
        ({"default": "last"}, None, 3),
        ({"default": "first"}, "", 0),
        ({"scope": "user", "default": "last"}, None, 1),
    ],
)
def test_references(keys, value, wanted: int) -> None:
    assert resolve_image(spec(**keys), value, ALL) == wanted


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({}, 4), ({}, -1), ({"reference": "index1"}, 0), ({}, "two"), ({}, True), ({}, 1.5), ({}, {}), ({}, "9" * 500),
        ({"scope": "user"}, 2), ({"reference": "img_{n}", "first": 1}, "img_0"),
    ],
)  # fmt: skip
def test_no_such_image(keys, value) -> None:
    with pytest.raises(ImageReferenceError, match="there is no image"):
        resolve_image(spec(**keys), value, ALL)


def test_user_images_can_be_told() -> None:
    assert resolve_image(spec(scope="user", default="last"), None, [*USER, THUMBNAIL], 2) == 1
    with pytest.raises(ImageReferenceError, match="no image in this conversation"):
        resolve_image(spec(), 0, [])


def test_a_system_may_mean_another_image() -> None:
    """Qwen-Agent's search takes the last image for a number that is too large; WebWatcher's any name for the first."""
    last = partial(QwenAgent().other_image, "glance")
    assert resolve_image(spec(), 9, ALL, None, last) == 3
    assert resolve_image(spec(scope="user"), 9, ALL, None, last) == 1
    assert resolve_image(spec(), "https://a.example/x.png", ALL, None, partial(WebWatcher().other_image, "glance")) == 0
    for value, kind in (("two", "glance"), (9, "zoom"), (-1, "glance")):
        with pytest.raises(ImageReferenceError, match="there is no image"):
            resolve_image(spec(), value, ALL, None, partial(QwenAgent().other_image, kind))


def test_names_are_those_that_are_read() -> None:
    for keys in ({}, {"reference": "index1"}, {"reference": "img_{n}", "first": 1}, {"aliases": {"original_image": 0}}):
        for position in range(4):
            assert resolve_image(spec(**keys), reference(spec(**keys), position), ALL) == position


def test_crops_of_crops_come_out_in_the_original_frame() -> None:
    call = '<grounding>{"bbox_2d": [0.5, 0.5, 1.0, 1.0], "source": "observation_2"}</grounding>'
    action = dialects.load("mini-o3").parse(call, ALL).actions[0]
    assert (action.kind, action.image, action.region) == (ActionKind.ZOOM, 2, Region(35, 35, 59, 59))
