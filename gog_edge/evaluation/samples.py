"""One question of a data set, independent of the format that it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageRef:
    """Where a picture is. Light, so that samples travel between processes; `images.ImageStore` opens it.

    `kind`: "file" (value is a path, absolute or relative to the data set), "url", "base64", or "parquet" (value is
    the file, `row` and `index` say which picture).
    """

    kind: str
    value: str
    row: int = 0
    column: str = ""
    index: int = 0


@dataclass(frozen=True)
class Sample:
    """A question with its accepted answers.

    `skill`: what the table is grouped by. `target_boxes`: x0, y0, x1, y1 in pixels of the original, where the things
    asked for are, if the data set says. `urls`: public addresses of the pictures, for providers that need them.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    images: tuple[ImageRef, ...]
    skill: str = "all"
    held_out: bool | None = None
    target_boxes: tuple[tuple[float, float, float, float], ...] = ()
    urls: tuple[str, ...] = ()
