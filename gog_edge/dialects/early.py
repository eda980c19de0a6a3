"""Boxes that are closed before their call is: the crop can be encoded while the policy still writes the label."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gog_edge.dialects.coordinates import CoordinateFrame, read_box
from gog_edge.dialects.images import resolve_image
from gog_edge.dialects.spec import ActionSpec, DialectSpec
from gog_edge.dialects.turns import TurnReader
from gog_edge.errors import DialectError, RegionError
from gog_edge.types import Region, RegisteredImage

_CLOSED = re.compile(r"\[[^\[\]]*\]")
_NUMBER = r"\s*:\s*(-?\d+(?:\.\d+)?)\s*[,}]"  # of a key; closed by what follows it


def open_box(
    spec: DialectSpec, frame: CoordinateFrame, text: str, images: Sequence[RegisteredImage]
) -> tuple[Region, int] | None:
    """The box of the last, unfinished call of `text` and its target image; None while there is none."""
    for action in spec.actions:
        if action.kind not in ("gaze", "zoom"):
            continue
        opening, closing = _marks(spec, action)
        start = text.rfind(opening) if opening else -1
        if start < 0 or closing in text[start:]:
            continue
        inner = text[start + len(opening) :]
        if action.via == "code":
            return _from_code(TurnReader(spec, frame, images), opening, inner, closing)
        box, image = _pieces(action, inner)
        if box is None or (action.via == "tool_call" and f'"{action.name}"' not in inner):
            continue
        try:
            target = resolve_image(spec.images, image, images)
            return frame.to_region(read_box(box), images[target]), target
        except (RegionError, DialectError):
            return None
    return None


def _marks(spec: DialectSpec, action: ActionSpec) -> tuple[str, str]:
    """What opens and closes a call."""
    if action.via == "tool_call":
        return spec.parse.call_open, spec.parse.call_close
    if action.via == "code":
        return action.open or "<code>", action.close or "</code>"
    return action.open, action.close


def _pieces(action: ActionSpec, text: str) -> tuple[str | list[str] | None, str | None]:
    """Raw box and image reference of an unfinished call; the image only if it was written already."""
    if action.via == "tag":
        closed = _CLOSED.search(text) if action.content in ("box", "box_or_label") else None
        return (closed.group() if closed else None), None
    key = action.args.get("box")
    box: str | list[str] | None = None
    if isinstance(key, str):
        found = re.search(rf'["\']{re.escape(key)}["\']\s*:\s*\[?({_CLOSED.pattern})', text)
        box = found.group(1) if found else None
    elif key is not None:
        sides = [re.search(rf'["\']{re.escape(k)}["\']{_NUMBER}', text) for k in key]
        box = [side.group(1) for side in sides if side] if all(sides) else None
    named = action.args.get("image")
    image = re.search(rf'["\']{re.escape(named)}["\']\s*:\s*"?([^",}}]+)', text) if isinstance(named, str) else None
    return box, (image.group(1).strip() if image else None)


def _from_code(reader: TurnReader, opening: str, code: str, closing: str) -> tuple[Region, int] | None:
    """The crop that the lines written so far make, were the block to end here."""
    lines = code[: code.rfind("\n") + 1]
    if "crop" not in lines:
        return None
    fence = "```" if lines.lstrip().startswith("```") else ""
    action = reader.read(f"{opening}{lines}{fence}{closing}").actions[0]
    return (action.region, action.image) if action.region is not None else None
