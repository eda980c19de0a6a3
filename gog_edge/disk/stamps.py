"""Which files were hashed already: remembered by what the file system says of them, so that it is done once.

A stamp is device, inode, size, and the times of the last change of content and of entry, in nanoseconds. Whoever writes
to a file changes the last, which no program can set back. Stamps lie in the cache folder, where nothing depends on
them: without them everything is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gog_edge.deadline import SYSTEM
from gog_edge.disk.files import seal_of, sha256_of, write_whole
from gog_edge.disk.paths import cache_directory

Stamp = tuple[int, int, int, int, int]
_TICK_NS = 20_000_000


def stamp_of(found: os.stat_result) -> Stamp:
    """(device, inode, size, mtime, ctime) of a file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True)
class Checked:
    """The hashes of one folder's files, as far as this user's cache knows them."""

    path: Path
    known: Mapping[str, tuple[Stamp, str]]

    @classmethod
    def of(cls, folder: Path) -> Checked:
        """What is remembered of `folder`; nothing where the cache can't be read."""
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        path = cache_directory() / "checked" / f"{name}.json"
        try:
            data = json.loads(path.read_text("utf-8"))
            known = {str(name): (_stamp(stamp), str(digest)) for name, (stamp, digest) in data.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            known = {}
        return cls(path, known)

    def has(self, name: str, stamp: Stamp, digest: str) -> bool:
        """Whether the file with this stamp was seen to have this hash."""
        return self.known.get(name) == (stamp, digest)

    def remember(self, seen: Mapping[str, tuple[Stamp, str]]) -> None:
        """Keep what was hashed in the place of what was known.

        Raises:
            OSError: the cache can't be written.
        """
        if dict(seen) != self.known:
            text = json.dumps({name: [list(stamp), digest] for name, (stamp, digest) in seen.items()})
            write_whole(self.path, [text.encode()])


def hash_of(path: Path) -> tuple[Stamp, str]:
    """(stamp, sha256 in hex) of a file that nobody changed while it was read.

    Raises:
        OSError: it can't be read, or keeps changing.
    """
    for _ in range(3):
        before = stamp_of(path.stat())
        if 0 <= time.time_ns() - before[4] < _TICK_NS:  # a second change within a tick of the clock would not show
            SYSTEM.event().wait(_TICK_NS / 1e9)
        digest, _ = sha256_of(path)
        if stamp_of(path.stat()) == before:
            return before, digest
    raise OSError(f"{path} changes while it is read")


def sealed(path: Path) -> bool:
    """Whether a file is what `files.seal` saw; hashed once, then told by its stamp.

    Raises:
        OSError: it can't be read.
    """
    wanted = seal_of(path)
    if wanted is None:
        return False
    cached = Checked.of(path.parent)
    if cached.has(path.name, stamp_of(path.stat()), wanted):
        return True
    stamp, digest = hash_of(path)
    if digest == wanted:
        with contextlib.suppress(OSError):
            cached.remember({path.name: (stamp, digest)})
    return digest == wanted


def _stamp(values: list[int]) -> Stamp:
    device, inode, size, modified, changed = map(int, values)
    return device, inode, size, modified, changed
