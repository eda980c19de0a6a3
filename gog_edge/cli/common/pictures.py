"""What `gog-edge ask` is given: pictures from files, from stdin (`-`) and from addresses, and perhaps a question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gog_edge.disk.paths import is_address
from gog_edge.errors import ImageError, SearchError, UsageError

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame, ImageLimits

FETCH_SECONDS = 30.0
STDIN = "-"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")


def split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """(pictures, question) of the command's arguments: the last is the question unless it is a picture itself.

    Raises:
        UsageError: there is no picture, or stdin is named twice.
    """
    *pictures, last = words
    question: str | None = last
    if _is_picture(last):
        pictures, question = [*pictures, last], None
    if not pictures:
        raise UsageError(f'{last!r} is no picture: gog-edge ask photo.jpg "What is this?"')
    if pictures.count(STDIN) > 1:
        raise UsageError("- (standard input) can be one picture only")
    return pictures, question


def _is_picture(word: str) -> bool:
    """Whether a last argument is a picture: one that exists, or that nobody would take for a question."""
    if word == STDIN or is_address(word) or (word.lower().endswith(_SUFFIXES) and " " not in word):
        return True
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # a question can be longer than a file's name
        return False


def open_picture(word: str, limits: ImageLimits) -> Frame:
    """Decode one picture.

    An address is trusted as it was typed, so it may be a camera of the local network; where it redirects to, must be a
    public address. Time and size are limited.

    Raises:
        ImageError: it can't be read, fetched or decoded.
    """
    from gog_edge.image.frame import Frame

    if word == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise ImageError("- reads a picture from standard input, but nothing is piped into it")
        return Frame.open(sys.stdin.buffer, name="standard input", limits=limits)
    if not is_address(word):
        return Frame.open(word, limits=limits)
    from gog_edge.search.base import Deadline
    from gog_edge.search.web.address import AddressPolicy
    from gog_edge.search.web.page import PageReader

    try:
        reader = PageReader(AddressPolicy().allowing(word), pictures=limits)
        try:
            return reader.read_image(word, deadline=Deadline.after(FETCH_SECONDS))
        finally:
            reader.close()
    except SearchError as e:
        raise ImageError(f"the picture can't be fetched: {e}") from e
