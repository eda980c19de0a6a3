"""Values of the index: what goes in, what is stored, what an ingest run reports."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gog_edge.disk.paths import is_address

ENTITY = "entity"
PAGE = "page"  # one page of a visual document: page image + OCR text

MAX_TEXT_CHARS = 100_000
MAX_TITLE_CHARS = 1_000


@dataclass(frozen=True)
class Record:
    """One entry to index. `images`: files (absolute or relative to the working folder) or http(s) addresses.

    `relations`: name -> ids of other entries; they need not exist yet. `id` may be empty: the content names it then.
    """

    id: str
    title: str
    text: str = ""
    source: str = ""
    images: tuple[str, ...] = ()
    relations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = ENTITY

    def content_hash(self, image_hashes: tuple[bytes, ...]) -> bytes:
        """Identity of the content without the id: the same text and pictures twice are one entry."""
        digest = hashlib.sha256()
        for part in (self.kind, self.title, self.text, self.source):
            raw = part.encode("utf-8", "backslashreplace")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        for name in sorted(self.relations):
            digest.update(repr((name, self.relations[name])).encode("utf-8", "backslashreplace"))
        for image_hash in image_hashes:
            digest.update(image_hash)
        # Addresses of remote pictures are content as well: nothing else is known of them.
        digest.update("\n".join(i for i in self.images if is_address(i)).encode("utf-8", "backslashreplace"))
        return digest.digest()


@dataclass(frozen=True)
class Entity:
    """One stored entry. `row`: its number in this index; `images`: paths resolved against the index, or addresses."""

    row: int
    id: str
    kind: str
    title: str
    text: str
    source: str
    images: tuple[str, ...]


@dataclass
class IngestReport:
    """Counts and the first few lines of what went wrong in one ingest run; nothing of it is fatal."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    vectors: int = 0
    reused_vectors: int = 0
    not_embedded: int = 0  # picture files of a run without an embedder
    problems: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    MAX_LINES = 20

    def problem(self, kind: str, line: str) -> None:
        """Count a problem (`duplicate`, `missing image`, …); `line` names the entry."""
        self.problems.setdefault(kind, []).append(line)

    def counts(self) -> dict[str, int]:
        """Problem kind -> how often."""
        return {kind: len(lines) for kind, lines in self.problems.items()}

    def as_json(self) -> dict[str, object]:
        return {
            "added": self.added,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "vectors": self.vectors,
            "reused_vectors": self.reused_vectors,
            "not_embedded": self.not_embedded,
            "seconds": round(self.seconds, 3),
            "problems": {
                kind: {"count": len(lines), "first": lines[: self.MAX_LINES]} for kind, lines in self.problems.items()
            },
        }


def file_hash(path: Path) -> bytes:
    """SHA-256 of a regular file's bytes, read in pieces. A pipe or a device would never end.

    Raises:
        OSError: the file can't be read, or is no regular file.
        ValueError: the path can't be one.
    """
    digest = hashlib.sha256()
    with open(path, "rb", opener=_without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe waits for its other end otherwise."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
