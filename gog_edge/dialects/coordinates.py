"""The border between a policy's numbers and `Region`: pixels of the original frame.

Every frame is relative to the TARGET image's view: the whole image, or for a crop the part of the original that it
shows. A box in a crop therefore comes out in pixels of the frame the crop was cut from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gog_edge.dialects.hooks import Box, Hooks
from gog_edge.dialects.spec import CoordinateSpec
from gog_edge.errors import RegionError
from gog_edge.types import BoxFrame, Region, RegisteredImage

# How a number of a frame is written, as a regular expression.
_WRITTEN = {
    "unit": r"0|1|0\.[0-9]{1,4}|1\.0{1,4}",
    "thousand": r"0|[1-9][0-9]{0,2}|1000",
    "shown": r"0|[1-9][0-9]{0,4}",
    "original": r"0|[1-9][0-9]{0,4}",
}
_BOX = re.compile(r"[\[(]*\s*" + r"[\s,;)(\]\[]+".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]*")


@dataclass(frozen=True)
class CoordinateFrame:
    """Conversions of one dialect. `frame`: its own, or the family's where it leaves that to the family."""

    spec: CoordinateSpec
    frame: BoxFrame
    hooks: Hooks = field(default_factory=Hooks)

    def extent(self, image: RegisteredImage, frame: BoxFrame | None = None) -> tuple[float, float]:
        """Width and height of the target's view in the policy's units."""
        frame = frame or self.frame
        if frame == "unit":
            return 1.0, 1.0
        if frame == "thousand":
            return 1000.0, 1000.0
        if frame == "shown":
            return float(image.shown_width), float(image.shown_height)
        return image.view.width, image.view.height

    def to_region(self, numbers: Sequence[float], image: RegisteredImage) -> Region:
        """The policy's four numbers as a box of the original frame, after the dialect's rules.

        Order of the rules: inverted corners, the frame that is meant, padding, cutting to the image, smallest side,
        largest aspect; whole pixels last, or before sizes that are refused.

        Raises:
            RegionError: not four finite numbers, an empty box, or a box that the dialect refuses.
        """
        if len(numbers) != 4 or not all(math.isfinite(v) for v in numbers):
            raise RegionError(f"a box is four finite numbers, not {list(numbers)}")
        a, b, c, d = (float(v) for v in numbers)
        x0, y0, x1, y1 = self.hooks.corners((a, b, c, d))
        if x1 < x0 or y1 < y0:
            if self.spec.inverted == "refuse":
                raise RegionError(f"the box {_show(numbers)} is inverted: the first corner is the top left one")
            x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        if x0 == x1 or y0 == y1:
            raise RegionError(f"the box {_show(numbers)} is empty")
        extents = [self.extent(image, frame) for frame in self.hooks.frames(self.frame)]
        width, height = next((e for e in extents if x1 <= e[0] and y1 <= e[1]), extents[-1])
        view = image.view
        if self.spec.whole_pixels == "cut":  # int(v / 1000 * side): the last bit decides on which side of an edge it is
            local = Region(
                x0 / width * view.width, y0 / height * view.height, x1 / width * view.width, y1 / height * view.height
            )
        else:  # multiplied before divided: 480 of 960 shown pixels is exactly half of 1000
            local = Region(
                x0 * view.width / width, y0 * view.height / height, x1 * view.width / width, y1 * view.height / height
            )
        px, py = self.hooks.padding(view)
        grown = Region(local.x0 - px, local.y0 - py, local.x1 + px, local.y1 + py)
        kept = _clamped(grown, view, numbers)
        if self.spec.min_side_rule == "refuse":  # whole pixels are judged, but a small box grows from what was written
            kept = self._sized(self._whole(kept, view, numbers), view, numbers)
        else:
            kept = self._whole(self._sized(kept, view, numbers), view, numbers)
        return Region(kept.x0 + view.x0, kept.y0 + view.y0, kept.x1 + view.x0, kept.y1 + view.y0)

    def _corners(self, region: Region, image: RegisteredImage) -> Box:
        """The inverse of `to_region` without its rules, unrounded, before the dialect's own numbers."""
        view = image.view
        local = Region(region.x0 - view.x0, region.y0 - view.y0, region.x1 - view.x0, region.y1 - view.y0)
        local = _clamped(local, view, local.as_tuple())
        width, height = self.extent(image)
        return local.scale(width / view.width, height / view.height).as_tuple()

    def format_box(self, region: Region, image: RegisteredImage | None) -> str:
        """The box as the policy writes it, such as `[120, 80, 640, 512]`; without an image, pixels of the original.

        Corners are rounded to the dialect's digits and kept apart by at least one unit, so that `to_region` reads it.

        Raises:
            RegionError: the box lies outside of the image's view.
        """
        numbers = self.numbers(region, image) if image is not None else [f"{v:.0f}" for v in region.as_tuple()]
        return "[" + ", ".join(numbers) + "]"

    def numbers(self, region: Region, image: RegisteredImage) -> list[str]:
        """The four numbers of `format_box` as strings."""
        a, b, c, d = self._corners(region, image)
        (x0, x1), (y0, y1) = self._rounded(a, c), self._rounded(b, d)
        return [f"{v:.{self.spec.decimals}f}" for v in self.hooks.numbers((x0, y0, x1, y1))]

    def json_numbers(self, region: Region, image: RegisteredImage) -> list[int | float]:
        """The same as numbers of a JSON list."""
        return [float(v) if "." in v else int(v) for v in self.numbers(region, image)]

    @property
    def number_pattern(self) -> str:
        """A regular expression of the numbers that a box can be written in."""
        return "|".join(dict.fromkeys(_WRITTEN[frame] for frame in self.hooks.frames(self.frame)))

    def _rounded(self, low: float, high: float) -> tuple[float, float]:
        """Both ends in the dialect's digits; a side that would vanish gets the unit it lies in."""
        unit = 10.0**-self.spec.decimals
        near = round(low, self.spec.decimals), round(high, self.spec.decimals)
        if near[1] > near[0]:
            return near
        floor = math.floor(low / unit) * unit
        return floor, floor + unit

    def _whole(self, box: Region, view: Region, numbers: Sequence[float]) -> Region:
        """The box with edges on pixels of the target, as the dialect's system cuts it."""
        if self.spec.whole_pixels == "outward":
            return box
        if self.spec.whole_pixels == "nearest":  # Image.crop of PIL
            x0, y0, x1, y1 = (float(round(v)) for v in box.as_tuple())
        else:
            x0, y0, x1, y1 = (float(int(v)) for v in box.as_tuple())
            if self.spec.whole_pixels == "down":
                x1, y1 = min(x1, view.width - 1), min(y1, view.height - 1)
        if x1 <= x0 or y1 <= y0:
            raise RegionError(f"the box {_show(numbers)} holds no whole pixel")
        return Region(x0, y0, x1, y1)

    def _sized(self, box: Region, view: Region, numbers: Sequence[float]) -> Region:
        least = self.spec.min_side
        if least and min(box.width, box.height) < least:
            if self.spec.min_side_rule == "refuse":
                raise RegionError(f"the box {_show(numbers)} is smaller than {least:g} pixels")
            ratio = least / min(box.width, box.height) if self.spec.min_side_rule == "scale" else 1.0
            x0, x1 = _grown(box.x0, box.x1, max(least, box.width * ratio), view.width)
            y0, y1 = _grown(box.y0, box.y1, max(least, box.height * ratio), view.height)
            box = Region(x0, y0, x1, y1)
        aspect = max(box.width / box.height, box.height / box.width)
        if self.spec.max_aspect and aspect > self.spec.max_aspect:
            raise RegionError(f"the box {_show(numbers)} is {aspect:.0f} times as long as wide")
        return box


def read_box(value: Any) -> list[float]:
    """Four numbers from what a policy wrote: a list, `[[…]]` (its first box), `{"x1": …}`, or a string of either.

    Raises:
        RegionError: anything else.
    """
    if isinstance(value, str):
        return _box_from_text(value)
    if isinstance(value, dict) and len(value) == 4:
        value = list(value.values())
    while isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        value = value[0]
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise RegionError(f"a box is a list of four numbers, not {_short(value)}")
    return [_number(v) for v in value]


def boxes_of(value: Any) -> list[Any]:
    """The raw boxes of a value that may hold one or many."""
    nested = isinstance(value, (list, tuple)) and value and all(isinstance(v, (list, tuple)) for v in value)
    return list(value) if nested else [value]


def split_box(text: str) -> tuple[list[float] | None, str]:
    """A box written among words: (its numbers or None, the words without it)."""
    found = _BOX.search(text)
    if found is None:
        return None, text.strip()
    return [_number(v) for v in found.groups()], (text[: found.start()] + " " + text[found.end() :]).strip()


def _box_from_text(text: str) -> list[float]:
    found = _BOX.search(text) if len(text) <= 1000 else None
    if found is None:
        raise RegionError(f"a box is four numbers, not {_short(text)}")
    return [_number(v) for v in found.groups()]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise RegionError(f"{_short(value)} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise RegionError(f"{_short(value)} is not a number") from error
    if not math.isfinite(number):
        raise RegionError(f"{_short(value)} is not a finite number")
    return number


def _clamped(box: Region, view: Region, numbers: Sequence[float]) -> Region:
    x0, x1 = max(box.x0, 0.0), min(box.x1, view.width)
    y0, y1 = max(box.y0, 0.0), min(box.y1, view.height)
    if x1 <= x0 or y1 <= y0:
        raise RegionError(f"the box {_show(numbers)} lies outside of the image")
    return Region(x0, y0, x1, y1)


def _grown(low: float, high: float, least: float, extent: float) -> tuple[float, float]:
    """The interval grown to `least` about its centre, moved into [0, extent]."""
    if high - low >= least:
        return low, high
    least = min(least, extent)
    centre = (low + high) / 2
    low = min(max(centre - least / 2, 0.0), extent - least)
    return low, low + least


def _show(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in numbers) + "]"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
