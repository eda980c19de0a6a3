"""The picture that a tool call names: an address, base64, or a file where the client may name files.

A model writes these calls, and what it has read may have talked it into them. So addresses must be public unless the
user allowed them, and whoever comes over the network names no files but those of folders that were given.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gog_edge.disk.paths import is_address
from gog_edge.errors import ImageError, SearchError, UsageError
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits
from gog_edge.search.base import Deadline
from gog_edge.search.web.address import AddressPolicy
from gog_edge.search.web.page import PageReader

FETCH_SECONDS = 30.0
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{48,}={0,2}")  # a picture's file name has a dot


@dataclass(frozen=True)
class PictureRules:
    """Args:
    folders: whose files may be named, with all below them; None: every file.
    addresses: http(s) addresses whose hosts are trusted though they are not public (a camera of the house).
    limits: what is refused.
    """

    folders: Sequence[Path] | None = None
    addresses: Sequence[str] = ()
    limits: ImageLimits = DEFAULT_LIMITS

    def policy(self) -> AddressPolicy:
        """Which addresses are fetched.

        Raises:
            UsageError: one of `addresses` is none.
        """
        policy = AddressPolicy()
        try:
            for address in self.addresses:
                policy = policy.allowing(address)
        except SearchError as e:
            raise UsageError(f"--allow-address: {e}") from e
        return policy


def open_picture(word: Any, rules: PictureRules) -> Frame:
    """Decode what `word` names.

    Raises:
        UsageError: it names nothing. ImageError: it may not be read, or can't be read, fetched or decoded.
    """
    if not isinstance(word, str) or not word.strip():
        raise UsageError("image is missing: give a file, an http(s) address, or the file in base64")
    word = word.strip()
    if word[:5].lower() == "data:":
        return Frame.open(_decode(word.partition(",")[2]), name="the picture", limits=rules.limits)
    if is_address(word):
        return _fetch(word, rules)
    if _BASE64.fullmatch(packed := "".join(word.split())):
        return Frame.open(_decode(packed), name="the picture", limits=rules.limits)
    return Frame.open(_file(word, rules.folders), limits=rules.limits)


def _decode(text: str) -> bytes:
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as e:
        raise UsageError(f"image is not base64: {e}") from e


def _fetch(address: str, rules: PictureRules) -> Frame:
    reader = PageReader(rules.policy(), pictures=rules.limits)
    try:
        return reader.read_image(address, deadline=Deadline.after(FETCH_SECONDS))
    except SearchError as e:
        raise ImageError(f"the picture can't be fetched: {e}") from e
    finally:
        reader.close()


def _file(word: str, folders: Sequence[Path] | None) -> Path:
    """The file, links followed: what it really is must lie in a folder that may be read."""
    try:
        path = Path(word).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as e:
        raise ImageError(f"{word[:200]!r} is no file name") from e
    if folders is not None and not any(path.is_relative_to(folder.resolve()) for folder in folders):
        hint = "start the server with --pictures FOLDER" if not folders else "it lies outside of the allowed folders"
        raise ImageError(f"files of this machine can't be named here ({hint}); send the picture in base64")
    return path
