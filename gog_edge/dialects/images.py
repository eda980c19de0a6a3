"""How a call names one of the session's images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from gog_edge.dialects.spec import ImagesSpec
from gog_edge.errors import DialectError
from gog_edge.types import RegisteredImage


class ImageReferenceError(DialectError):
    """A call names an image that is not there; the message is for the policy."""


def resolve_image(
    spec: ImagesSpec,
    value: Any,
    images: Sequence[RegisteredImage],
    user_images: int | None = None,
    other: Callable[[int | None, int], int | None] = lambda number, count: None,
) -> int:
    """Registry index of the image a call means; `value` is None when the call names none.

    `user_images`: how many of the first registry images the user gave (default: those before the first crop).
    `other`: what is meant by a name that no image has, see `Hooks.other_image`.

    Raises:
        ImageReferenceError: there is no such image.
    """
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if not images:
        raise ImageReferenceError("there is no image in this conversation")
    allowed = allowed_images(spec, images, user_images)
    if value is None or value == "":
        return allowed[0] if spec.default == "first" else allowed[-1]
    number = _number(spec, value)
    if isinstance(value, str) and value.strip() in spec.aliases:
        number = spec.aliases[value.strip()]
    if number is None or not 0 <= number < len(allowed):
        number = other(number, len(allowed))
    if number is not None:
        return allowed[number]
    shown = ", ".join(reference(spec, position) for position in range(min(len(allowed), 20)))
    raise ImageReferenceError(f"there is no image {str(value)[:40]!r}; the images are {shown}")


def reference(spec: ImagesSpec, position: int) -> str:
    """How the policy names the image at `position` of the images in scope (0 is the first)."""
    for alias, target in spec.aliases.items():
        if target == position:
            return alias
    pattern = spec.reference if "{n}" in spec.reference else "{n}"
    return pattern.replace("{n}", str(position + _first(spec)))


def allowed_images(spec: ImagesSpec, images: Sequence[RegisteredImage], user_images: int | None) -> list[int]:
    """Registry indices of the images that a call can name."""
    if spec.scope == "all":
        return list(range(len(images)))
    if user_images is None:
        crops = (i for i, image in enumerate(images) if image.region is not None or image.source != image.index)
        user_images = next(crops, len(images))
    return list(range(max(1, min(user_images, len(images)))))


def _first(spec: ImagesSpec) -> int:
    return {"index0": 0, "index1": 1}.get(spec.reference, spec.first)


def _number(spec: ImagesSpec, value: Any) -> int | None:
    """The position meant by `value`, counted from 0, or None when it can't be read."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return value - _first(spec)
    if not isinstance(value, str) or len(value) > 200:
        return None
    pattern = re.escape(spec.reference if "{n}" in spec.reference else "{n}").replace(re.escape("{n}"), r"(\d{1,6})")
    match = re.fullmatch(pattern, value.strip()) or re.fullmatch(r"(\d{1,6})", value.strip())
    return int(match.group(1)) - _first(spec) if match else None
