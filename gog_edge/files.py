"""Results on disk: a file appears whole or not at all, and what goes wrong names the file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gog_edge.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, making its folder; an older file stays until the new one is complete.

    Raises:
        UsageError: the folder can't be written, or the disk is full.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, "utf-8")
        scratch.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise UsageError(f"{path} can't be written: {e.strerror or e}; choose another place or free some space") from e
