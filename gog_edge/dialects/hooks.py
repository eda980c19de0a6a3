"""What one system alone does. A dialect file names its hooks (`hooks = "vrag-rl"`, inherited by `extends`); keys that
several systems share are in the file (`spec`). Hooks are code of this package: a file can't bring any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gog_edge.types import BoxFrame, Control, Region, Segment

Box = tuple[float, float, float, float]


class Hooks:
    """The places where a system may do something of its own; here nothing is done."""

    def tools_text(self, entries: Sequence[str]) -> str:
        """What is inserted at `{tools}`, from the `json` of [[tools]]."""
        return "\n".join(entries)

    def to_user(self, marker: str) -> str:
        """What closes the policy's turn and opens the user's, from what the chat template writes there."""
        return marker

    def next_prefill(self, prefill: str) -> str:
        """How the policy's second and every later turn is begun for it, from what the chat template writes there."""
        return prefill

    def seen(self, turn: str) -> str:
        """The part of a turn that is read."""
        return turn

    def other_image(self, kind: str, number: int | None, count: int) -> int | None:
        """The place of the image that an action of `kind` means by a name that none of the `count` images has, None to
        refuse it; `number` is the place that it names, None where it names none."""
        return None

    def result_turn(self, content: list[Segment], replies: set[str]) -> list[Segment]:
        """The whole result turn; `replies`: keys of [replies] that it holds, "" where it holds a result."""
        return content

    def frames(self, frame: BoxFrame) -> tuple[BoxFrame, ...]:
        """Frames in which the policy writes boxes: the first whose extent holds the box is meant, else the last."""
        return (frame,)

    def corners(self, numbers: Box) -> Box:
        """(x0, y0, x1, y1) from the four numbers that the policy writes."""
        return numbers

    def numbers(self, corners: Box) -> Box:
        """The inverse of `corners`."""
        return corners

    def refuses(self, kind: str, values: Mapping[str, Any], count: int) -> str:
        """Why a call of `kind` is refused as it was written (role -> value) with `count` images in scope, in the
        system's words; empty to read it."""
        return ""

    def padding(self, view: Region) -> tuple[float, float]:
        """Pixels of the target that are added to a box at the left and right, and at the top and bottom."""
        return 0.0, 0.0


class MMSearchR1(Hooks):
    """The training rollout puts no line break between the turns."""

    def to_user(self, marker: str) -> str:
        return marker.replace(">\n<", "><", 1)


class SenseNovaMars(MMSearchR1):
    """No line break between the turns either; four reasons why a box is refused, each in its own words."""

    def refuses(self, kind: str, values: Mapping[str, Any], count: int) -> str:
        if kind != "zoom":
            return ""
        box = values.get("box")
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            return "bbox parameter is missing or not a list of 4 numbers."
        try:
            x0, y0, x1, y1 = (float(v) for v in box)
        except (TypeError, ValueError, OverflowError):
            return f"Bbox coordinates must be numeric: {box}"
        if not all(0 <= v <= 1000 for v in (x0, y0, x1, y1)):
            return f"In relative mode, coordinates must be in [0, 1000.0]. Got: {box}"
        if not (x0 < x1 and y0 < y1):
            return f"Invalid bbox coordinates: x1 must be < x2, y1 must be < y2. Got: {box}"
        return ""


class DeepEyesV2(Hooks):
    """Later turns are begun with `<think>`."""

    def next_prefill(self, prefill: str) -> str:
        return "<think>"


class QwenAgent(Hooks):
    """A search with an image number that is too large takes the last image; a zoom refuses it."""

    def other_image(self, kind: str, number: int | None, count: int) -> int | None:
        return count - 1 if kind == "glance" and number is not None and number >= count else None


class WebWatcher(Hooks):
    """Images are named by addresses that the policy makes up: the first one is meant."""

    def other_image(self, kind: str, number: int | None, count: int) -> int | None:
        return 0


class OpenSearchVL(Hooks):
    """Boxes are x, y, width, height; the tools are a JSON list."""

    def tools_text(self, entries: Sequence[str]) -> str:
        return ",\n".join(entries)

    def corners(self, numbers: Box) -> Box:
        x, y, width, height = numbers
        return x, y, x + width, y + height

    def numbers(self, corners: Box) -> Box:
        x0, y0, x1, y1 = corners
        return x0, y0, x1 - x0, y1 - y0


class PixelReasoner(Hooks):
    """A box is relative, or pixels where its numbers are too large for that; a tenth of the image is added around."""

    def frames(self, frame: BoxFrame) -> tuple[BoxFrame, ...]:
        return (frame, "original")

    def padding(self, view: Region) -> tuple[float, float]:
        return 0.1 * view.width, 0.1 * view.height


class VragRL(Hooks):
    """56 pixels are added around a box."""

    def padding(self, view: Region) -> tuple[float, float]:
        return 56.0, 56.0


class VisionDeepResearch(Hooks):
    """What the policy makes up as a response is not read; one wrapper holds all results of a turn, but for the reply to
    a turn that calls nothing."""

    def seen(self, turn: str) -> str:
        return turn.split("<tool_response>", 1)[0]

    def result_turn(self, content: list[Segment], replies: set[str]) -> list[Segment]:
        if replies == {"nothing"}:
            return content
        return _one_response(content)


class VideoDeepResearch(Hooks):
    """Images and boxes come in pairs; one wrapper holds all that a turn is told."""

    def refuses(self, kind: str, values: Mapping[str, Any], count: int) -> str:
        if kind != "gaze":
            return ""
        for key, role in (("image_idx", "image"), ("bbox", "box")):
            given = values.get(role)
            if not isinstance(given, (list, tuple)) or not given:
                return f"select_crop_search requires '{key}' argument."
            for index in given if role == "image" else ():
                if isinstance(index, bool) or not str(index).lstrip("-").isdecimal():
                    return f"image_idx values must be integers, got {index!r}."
                if not 0 <= int(index) < count:
                    return f"image_idx {index} is out of range. Available indices: {list(range(count))}."
        boxes, images = len(values["box"]), len(values["image"])
        if boxes != images:
            return f"bbox and image_idx must have the same length (got {boxes} bboxes for {images} images)."
        return ""

    def result_turn(self, content: list[Segment], replies: set[str]) -> list[Segment]:
        return _one_response(content)


def _one_response(content: list[Segment]) -> list[Segment]:
    """One wrapper around everything that a turn is told."""
    return [Control("<tool_response>\n"), *content, Control("\n</tool_response>")]


HOOKS: Mapping[str, type[Hooks]] = {
    "": Hooks,
    "deepeyes-v2": DeepEyesV2,
    "mmsearch-r1": MMSearchR1,
    "opensearch-vl": OpenSearchVL,
    "pixel-reasoner": PixelReasoner,
    "qwen-agent": QwenAgent,
    "sensenova-mars": SenseNovaMars,
    "video-deepresearch": VideoDeepResearch,
    "vision-deepresearch": VisionDeepResearch,
    "vrag-rl": VragRL,
    "webwatcher": WebWatcher,
}
