"""Stand-ins for tests of the index: an embedder without a model, records, vectors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import ImageError
from gog_edge.search.local.record import Record
from gog_edge.types import Region


def unit(seed: int, dim: int = 16) -> NDArray[np.float32]:
    """A random unit vector."""
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass(frozen=True)
class FakeFrame:
    """Bytes that play the part of a decoded image."""

    data: bytes


@dataclass
class FakeEmbedder:
    """The vector is a hash of the bytes; counts its work."""

    fingerprint: str = "fake-1"
    dim: int = 16
    calls: int = 0
    seen: list[Any] = field(default_factory=list)

    def embed(self, frame: Any, region: Region | None = None) -> NDArray[np.float32]:
        self.calls += 1
        self.seen.append(region)
        seed = int.from_bytes(hashlib.sha256(frame.data + repr(region).encode()).digest()[:8], "little")
        return unit(seed, self.dim)


def load_fake(path: Path) -> FakeFrame:
    """Reads the bytes; `broken` in them means an image that can't be decoded."""
    data = path.read_bytes()
    if b"broken" in data:
        raise ImageError(f"{path}: not an image")
    return FakeFrame(data)


def record(identity: str, title: str, text: str = "", *images: Path, **relations: str) -> Record:
    """A record in one line."""
    return Record(identity, title, text, "test", tuple(str(i) for i in images), {k: (v,) for k, v in relations.items()})
