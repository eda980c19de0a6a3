"""Results on disk: a file appears whole or not at all, and what goes wrong names the file.

Derived files that native code reads (compiled kernels, vector graphs) carry the hash of what was written, and are read
only if they still have it: a library with a block of zeros inside of it ends the process that loads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gog_edge.disk import leftovers
from gog_edge.errors import UsageError

_SEAL = b"GOGSEAL1"
_CHUNK = 1 << 22


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 `text` to `path`, making its folder; an older file stays until the new one is complete.

    Lone surrogates, which UTF-8 lacks, become `\udc..`: in JSON that is the same string.

    Raises:
        UsageError: the folder can't be written, or the disk is full.
    """
    try:
        write_whole(path, [text.encode("utf-8", "backslashreplace")])
    except OSError as e:
        raise UsageError(f"{path} can't be written: {e.strerror or e}; choose another place or free some space") from e


def write_whole(path: Path, pieces: Iterable[Any]) -> None:
    """Write bytes, buffer by buffer; after a kill, a crash or a full disk the old file is there, or the whole new one.

    Raises:
        OSError: the folder can't be written, or the disk is full.
    """
    with whole_file(path) as scratch, scratch.open("wb") as f:
        for piece in pieces:
            f.write(piece)


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """A scratch file that takes the place of `path` (or of what a link there leads to) at the end of the block.

    Pipes and devices are given as they are.

    Args:
        mode: its permissions; default: what the user's umask leaves.

    Raises:
        OSError: as `write_whole`.
    """
    path = leftovers.followed(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device: nobody wants its name replaced
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with leftovers.scratch_file(path) as scratch:
        if mode is not None:
            scratch.chmod(mode)
        yield scratch
        leftovers.sync(scratch)
        scratch.replace(path)
    with contextlib.suppress(OSError):  # the rename is kept sooner or later
        leftovers.sync(path.parent)


def sha256_of(path: Path) -> tuple[str, int]:
    """(sha256 in hex, bytes) of a file, read in pieces.

    Raises:
        OSError: it can't be read.
    """
    h = hashlib.sha256()
    size = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            h.update(chunk)
            size += len(chunk)
    return h.hexdigest(), size


def write_sealed(path: Path, data: bytes) -> None:
    """Write bytes that native code will be given, behind their hash, for this user alone.

    Raises:
        OSError: as `write_whole`.
    """
    with whole_file(path, mode=0o600) as scratch:
        scratch.write_bytes(b"".join((_SEAL, hashlib.sha256(data).digest(), data)))


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote; None: there is nothing, or it is not ours, or it is not what was written.

    Raises:
        OSError: it is there and can't be read.
    """
    try:
        with path.open("rb") as f:
            if not ours(os.fstat(f.fileno())):
                return None
            content = f.read()
    except FileNotFoundError:
        return None
    digest, data = content[len(_SEAL) : len(_SEAL) + 32], content[len(_SEAL) + 32 :]
    whole = content.startswith(_SEAL) and hashlib.sha256(data).digest() == digest
    return data if whole else None


def seal(path: Path) -> None:
    """Write down the hash of a finished file, beside it: for libraries that must lie in a file of their own.

    Raises:
        OSError: as `write_whole`.
    """
    with whole_file(_beside(path), mode=path.stat().st_mode & 0o666) as scratch:
        scratch.write_text(sha256_of(path)[0], "ascii")


def seal_of(path: Path) -> str | None:
    """The hash that `seal` wrote down; None: it did not.

    Raises:
        OSError: it can't be read.
    """
    try:
        return _beside(path).read_text("latin-1")  # a damaged one is any bytes, and no hash
    except FileNotFoundError:
        return None


def trusted(path: Path) -> bool:
    """Whether a program's file is what `seal` saw, and nobody else can have written it or its seal.

    Raises:
        OSError: it can't be read.
    """
    try:
        own = ours(path.stat()) and ours(_beside(path).stat())
    except FileNotFoundError:
        return False
    return own and seal_of(path) == sha256_of(path)[0]


def remove_sealed(path: Path) -> None:
    """Delete a sealed file if that is possible; its seal goes last, so that none stands without a file."""
    if leftovers.remove(path):
        leftovers.remove(_beside(path))


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def ours(found: os.stat_result) -> bool:
    """Whether nobody but this user and root can have written a file or folder: code in it would run as this user."""
    return not hasattr(os, "getuid") or (found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022)
