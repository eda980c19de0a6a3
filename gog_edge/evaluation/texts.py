"""Files of texts, one per line: attacks to plant, pages to tell from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gog_edge.errors import DatasetError


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, without empty ones: `.jsonl` (one string, or one object with a `text`, a line), or plain.

    Raises:
        DatasetError: it can't be read, or a line of it can't.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise DatasetError(f"{path}: no texts can be read ({e.strerror if isinstance(e, OSError) else e})") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            yield line.rstrip("\r")
            continue
        try:
            value = json.loads(line)
        except ValueError as e:
            raise DatasetError(f"{path.name}, line {number}: not JSON ({e})") from e
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise DatasetError(f'{path.name}, line {number}: needs a string, or an object with the field "text"')
        yield text
