"""Questions about image files, as JSON lines: the input of studies of a policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gog_edge.errors import DatasetError


@dataclass(frozen=True)
class Ask:
    """A question about an image file."""

    image: Path
    question: str


def read_questions(file: str | Path, images: str | Path | None = None) -> list[Ask]:
    """JSON lines with `image` (relative to `images`, or to the file's folder) and `question`; the rest is ignored.

    Raises:
        DatasetError: unreadable, or a line lacks one of them, or an image is missing.
    """
    path = Path(file)
    root = Path(images) if images else path.parent
    asks = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DatasetError(f"{path} can't be read: {e}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            ask = Ask(root / str(row["image"]), str(row["question"]))
        except (ValueError, KeyError, TypeError) as e:
            raise DatasetError(f"{path}, line {number}: needs a JSON object with image and question") from e
        if not ask.image.is_file():
            raise DatasetError(f"{path}, line {number}: there is no image {ask.image}")
        asks.append(ask)
    return asks
