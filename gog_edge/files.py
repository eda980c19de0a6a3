"""Results on disk: a file appears whole or not at all, and what goes wrong names the file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gog_edge.errors import UsageError


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 `text` to `path`, making its folder; an older file stays until the new one is complete.

    Lone surrogates, which UTF-8 lacks, become `\udc..`: in JSON that is the same string.

    Raises:
        UsageError: the folder can't be written, or the disk is full.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text.encode("utf-8", "backslashreplace").decode("utf-8"), "utf-8")
        scratch.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise UsageError(f"{path} can't be written: {e.strerror or e}; choose another place or free some space") from e
