"""Boxes that are closed before their call is: the crop can be encoded while the policy still writes the label."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gog_edge.errors import DialectError, RegionError
from gog_edge.runtime.dialects.coordinates import CoordinateFrame, read_box
from gog_edge.runtime.dialects.images import resolve_image
from gog_edge.runtime.dialects.spec import ActionSpec, DialectSpec
from gog_edge.types import Region, RegisteredImage


def open_box(
    spec: DialectSpec, frame: CoordinateFrame, text: str, images: Sequence[RegisteredImage]
) -> tuple[Region, int] | None:
    """The box of the last, unfinished call of `text` and its target image; None while there is none."""
    for action in spec.actions:
        if action.kind not in ("gaze", "zoom"):
            continue
        opening, closing = (
            (spec.parse.call_open, spec.parse.call_close) if action.via == "tool_call" else (action.open, action.close)
        )
        start = text.rfind(opening) if opening else -1
        if start < 0 or closing in text[start:]:
            continue
        box, image = _pieces(action, text[start + len(opening) :])
        if box is None or (action.via == "tool_call" and f'"{action.name}"' not in text[start:]):
            continue
        try:
            target = resolve_image(spec.images, image, images)
            return frame.to_region(read_box(box), images[target]), target
        except (RegionError, DialectError):
            return None
    return None


def _pieces(action: ActionSpec, text: str) -> tuple[str | None, str | None]:
    """Raw box and image reference of an unfinished call; the image only if it was written already."""
    key = action.args.get("box")
    if action.via == "tag":
        return (text, None) if action.content == "box" and text.rstrip().endswith("]") else (None, None)
    if not isinstance(key, str):
        return None, None
    box = re.search(rf'["\']{re.escape(key)}["\']\s*:\s*\[?(\[[^\[\]]*\])', text)
    named = action.args.get("image")
    image = re.search(rf'["\']{re.escape(named)}["\']\s*:\s*"?([^",}}]+)', text) if isinstance(named, str) else None
    return (box.group(1) if box else None), (image.group(1).strip() if image else None)
