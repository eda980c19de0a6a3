"""Writing an action as the policy would: the inverse of the parsers, for training data, transcripts and tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gog_edge.dialects.coordinates import CoordinateFrame
from gog_edge.dialects.images import reference
from gog_edge.dialects.spec import ActionSpec, DialectSpec
from gog_edge.errors import DialectError
from gog_edge.types import Action, ActionKind, RegisteredImage


def write_action(spec: DialectSpec, frame: CoordinateFrame, action: Action, images: Sequence[RegisteredImage]) -> str:
    """The action's text, in the first form the dialect lists for its kind.

    Raises:
        DialectError: the dialect has no such action.
        RegionError: the region lies outside of the target image.
    """
    form = next((a for a in spec.actions if a.kind == action.kind.value), None)
    if form is None and action.kind is ActionKind.ANSWER and spec.parse.otherwise == "answer":
        return action.text
    if form is None:
        raise DialectError(f"dialect {spec.name!r} can't write the action {action.kind.value!r}")
    numbers = _numbers(frame, action, images)
    if form.via == "literal":
        return form.literal
    if form.via == "boxed":
        return "\\boxed{" + action.text + "}"
    if form.via == "tag":
        return form.open + _content(form, action, numbers) + form.close
    if form.via == "code":
        return _code(spec, frame, form, action, images)
    arguments = _arguments(spec, form, action, numbers)
    if form.via == "json":
        return form.open + json.dumps(arguments, ensure_ascii=False) + form.close
    call: dict[str, Any] = {spec.parse.name_key: form.name}
    if not form.bare:
        call[spec.parse.arguments_key] = arguments
    return f"{spec.parse.call_open}\n{json.dumps(call, ensure_ascii=False)}\n{spec.parse.call_close}"


def _numbers(frame: CoordinateFrame, action: Action, images: Sequence[RegisteredImage]) -> list[int | float]:
    if action.region is None:
        return []
    written = frame.numbers(action.region, images[action.image])
    return [float(v) if "." in v else int(v) for v in written]


def _code(
    spec: DialectSpec, frame: CoordinateFrame, form: ActionSpec, action: Action, images: Sequence[RegisteredImage]
) -> str:
    """A crop in the dialect's style, see `code_calls`."""
    image = reference(spec.images, action.image)
    numbers = frame.numbers(action.region, images[action.image]) if action.region is not None else []
    box = ", ".join(numbers)
    body = f"\nimage_1 = crop({image}, [{box}])\n"
    if frame.frame != "unit":
        body = f"\n```python\nplt.imshow({image}.crop(({box})))\nplt.show()\n```\n"
    return (form.open or "<code>") + body + (form.close or "</code>")


def _content(form: ActionSpec, action: Action, numbers: list[int | float]) -> str:
    if form.content in ("box", "box_or_label"):
        words = f" {action.label}" if form.content == "box_or_label" and action.label else ""
        return json.dumps(numbers) + words
    if form.content == "none":
        return ""
    return action.label if form.content == "label" else action.text


def _arguments(spec: DialectSpec, form: ActionSpec, action: Action, numbers: list[int | float]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for role, keys in form.args.items():
        key = keys if isinstance(keys, str) else keys[0]
        if role == "box" and isinstance(keys, tuple):
            out.update(zip(keys, numbers))
        elif role == "box":
            out[key] = [numbers] if form.many else numbers
        elif role == "image":
            if "image" in form.required or action.image:
                named = _image(spec, action.image)
                out[key] = [named] if form.listed else named
        elif role == "unused":
            out[key] = reference(spec.images, action.image)
        elif role == "limit":
            if action.limit:
                out[key] = action.limit
        elif role == "label":
            if action.label or "label" in form.required:
                out[key] = action.label
        else:
            out[key] = [action.text] if form.listed else action.text
    return out


def _image(spec: DialectSpec, index: int) -> int | str:
    name = reference(spec.images, index)
    return int(name) if name.isdigit() else name
