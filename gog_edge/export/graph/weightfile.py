"""External weight data, written once, front to back, hashed while it is written.

Nothing of a tensor stays in memory after it was appended, so the peak of an export is that of its largest tensor
(or chunk), not of the model. Every tensor starts at a multiple of 64 bytes: memory-mapped weights are used in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.manifest import FileDigest

ALIGNMENT = 64
_PIECE = 1 << 24


@dataclass(frozen=True)
class Blob:
    """Where a tensor lies: file name beside the graph, offset and length in bytes."""

    file: str
    offset: int
    length: int


@dataclass
class BlobWriter:
    """Takes the bytes of one tensor, in as many pieces as the caller likes."""

    _file: WeightFile
    length: int = 0

    def write(self, array: NDArray[Any]) -> None:
        """Append the array's bytes in C order."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._file._put(flat)
        self.length += flat.size


@dataclass
class WeightFile:
    """An open weight file; use as a context manager, read `digest` afterwards."""

    path: Path
    size: int = 0
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    def __enter__(self) -> WeightFile:
        self._handle = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()

    @contextmanager
    def blob(self) -> Iterator[tuple[BlobWriter, list[Blob]]]:
        """Write one tensor in pieces; the list holds its Blob once the block has ended."""
        self._put(np.zeros(-self.size % ALIGNMENT, np.uint8))
        offset, done = self.size, list[Blob]()
        writer = BlobWriter(self)
        yield writer, done
        done.append(Blob(self.path.name, offset, writer.length))

    def append(self, array: NDArray[Any]) -> Blob:
        """Write one whole tensor."""
        return self.append_all((array,))

    def append_all(self, pieces: Iterable[NDArray[Any]]) -> Blob:
        """Write one tensor that comes in pieces."""
        with self.blob() as (writer, done):
            for piece in pieces:
                writer.write(piece)
        return done[0]

    def put_unaligned(self, array: NDArray[Any]) -> None:
        """Append bytes right after what is there, outside of any tensor."""
        self._put(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    @property
    def digest(self) -> FileDigest:
        """sha256 and size of everything written so far."""
        return FileDigest(self._hash.hexdigest(), self.size)

    def _put(self, flat: NDArray[np.uint8]) -> None:
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE].data
            self._handle.write(piece)
            self._hash.update(piece)
        self.size += flat.size
