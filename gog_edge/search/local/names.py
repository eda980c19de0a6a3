"""Names of files and entries as they come: not always text, and not always composed the same way.

A file name on Linux is bytes; those that are no UTF-8 come as lone surrogates, which SQLite can't store. macOS writes
an é as e and an accent (NFD), most others as one character (NFC): both mean the same name.
"""

from __future__ import annotations

import codecs
import os
import unicodedata
from pathlib import Path

_FALLBACK = "gog-edge-cp1252"


def stored_id(name: str) -> str:
    """An id as it is stored and looked up: composed (NFC), lone surrogates as `\\udc..`, so different ones differ."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode("utf-8")


def stored_path(path: str) -> str | bytes:
    """A path as it is stored: text, or the file system's own bytes where they are no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def readable(name: str) -> str:
    """A file name as a title: bytes that are no UTF-8 are read as Windows-1252."""
    try:
        return decoded(os.fsencode(name))
    except UnicodeEncodeError:
        return name.encode("utf-8", "replace").decode("utf-8")


def decoded(data: bytes) -> str:
    """Text of a small file: UTF-8 or UTF-16 with or without a mark; bytes that are neither as Windows-1252."""
    return data.decode(encoding_of(data[:2]), fallback())


def encoding_of(start: bytes) -> str:
    """The codec for a file that begins with these two bytes."""
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def fallback() -> str:
    """The name of the error handler that reads what is no UTF-8 as Windows-1252, byte by byte."""

    def as_cp1252(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        if error.encoding.startswith("utf-16"):
            return "\ufffd", error.end
        return error.object[error.start : error.end].decode("cp1252", "replace"), error.end

    codecs.register_error(_FALLBACK, as_cp1252)
    return _FALLBACK


class FolderNames:
    """Finds files whose name is composed differently on disk than where it was written down."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path:
        """`path` if it is there (or plain ASCII), else the entry that means the same name, else `path`."""
        if str(path).isascii() or os.path.lexists(path):
            return path
        folder = self.find(path.parent) if path.parent != path else path
        if folder not in self._names:
            try:
                self._names[folder] = {unicodedata.normalize("NFC", p.name): p.name for p in folder.iterdir()}
            except (OSError, ValueError):
                self._names[folder] = {}
        known = self._names[folder].get(unicodedata.normalize("NFC", path.name))
        return path if known is None else folder / known
