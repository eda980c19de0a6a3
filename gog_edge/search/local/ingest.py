"""Adding records to an index: hash and embed the pictures, write in small transactions, report what was odd.

Killed at any moment, the index holds every committed batch; running the same command again skips those by content
and continues. Equal pictures are embedded once, whichever entry they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import SYSTEM
from gog_edge.disk.paths import is_address
from gog_edge.errors import ImageError, SearchIndexError
from gog_edge.search.base import Embedder
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.names import FolderNames
from gog_edge.search.local.readers import Item, Problem
from gog_edge.search.local.record import IngestReport, Record, file_hash
from gog_edge.search.local.store import StoredImage

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

BATCH_RECORDS = 64
BATCH_RECORDS_TEXT = 2048  # without an encoder, records cost next to nothing and transactions dominate
BATCH_SECONDS = 2.0


def add_records(
    index: LocalIndex,
    items: Iterable[Item],
    *,
    embedder: Embedder | None = None,
    load_frame: Callable[[Path], Frame] | None = None,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Add every record of `items`; a picture without an embedder is kept as a path only.

    Args:
        load_frame: decodes a picture file; the runtime's own `Frame.open` by default.
        progress: called with the number of items done so far.

    Raises:
        SearchIndexError: the index holds vectors of another encoder than `embedder`.
    """
    start = SYSTEM.now()
    report = IngestReport()
    if embedder is not None:
        index.store.check_encoder(embedder.fingerprint)
    pictures = _Pictures(index, embedder, load_frame or _open_frame, report)
    batch: list[tuple[Record, list[StoredImage]]] = []
    opened = SYSTEM.now()
    size = BATCH_RECORDS if embedder is not None else BATCH_RECORDS_TEXT
    for done, item in enumerate(items, start=1):
        if isinstance(item, Problem):
            report.problem(item.kind, item.line)
        else:
            batch.append((item, pictures.prepare(item)))
        if len(batch) >= size or SYSTEM.now() - opened > BATCH_SECONDS:
            _write(index, batch, embedder, report)
            batch.clear()
            pictures.fresh.clear()
            opened = SYSTEM.now()
        if progress is not None:
            progress(done)
    _write(index, batch, embedder, report)
    report.vectors, report.reused_vectors = pictures.made, pictures.reused
    report.seconds = SYSTEM.now() - start
    return report


def _write(
    index: LocalIndex,
    batch: list[tuple[Record, list[StoredImage]]],
    embedder: Embedder | None,
    report: IngestReport,
) -> None:
    if not batch:
        return
    with index.database.transaction() as c:
        first = next((i.vector for _, images in batch for i in images if i.vector is not None), None)
        if embedder is not None and first is not None:
            index.store.claim_encoder(c, embedder.fingerprint, first.size, str(getattr(embedder, "path", "")))
        for record, images in batch:
            if not (record.title or record.text or images):
                report.problem("empty", f"{record.id or '(no id)'}: nothing left of it")
                continue
            outcome = index.store.put(c, record, images)
            if outcome == "added":
                report.added += 1
            elif outcome == "updated":
                report.updated += 1
            elif outcome == "unchanged":
                report.unchanged += 1
            else:
                report.problem("duplicate", f"{record.id or record.title[:60]}: {outcome}")
        index.store.touch(c)


class _Pictures:
    """Turns a record's images into what is stored of them; remembers vectors by content."""

    def __init__(
        self,
        index: LocalIndex,
        embedder: Embedder | None,
        load_frame: Callable[[Path], Frame],
        report: IngestReport,
    ) -> None:
        self._index, self._embedder, self._load, self._report = index, embedder, load_frame, report
        self.fresh: dict[bytes, NDArray[np.float32]] = {}
        self.made = self.reused = 0
        self._names = FolderNames()

    def prepare(self, record: Record) -> list[StoredImage]:
        name = record.id or record.title[:60]
        found: list[StoredImage] = []
        for image in record.images:
            if is_address(image):
                self._report.problem("remote image", f"{name}: {image[:200]} is kept as an address, not embedded")
                found.append(StoredImage(image.encode("utf-8", "replace").decode("utf-8"), None, None))
                continue
            path = self._names.find(Path(image))
            try:
                digest = file_hash(path)
            except (OSError, ValueError) as e:
                self._report.problem("missing image", f"{name}: {path} ({getattr(e, 'strerror', None) or e})")
                continue
            try:
                vector = self._vector(path, digest)
            except ImageError as e:
                self._report.problem("unreadable image", f"{name}: {e}")
                continue
            self._report.not_embedded += self._embedder is None
            found.append(StoredImage(self._index.store.relative(path), digest, vector))
        return found

    def _vector(self, path: Path, digest: bytes) -> NDArray[np.float32] | None:
        if self._embedder is None:
            return None
        known = self.fresh.get(digest)
        if known is None:
            known = self._index.store.vector_of(digest)
        if known is not None:
            self.reused += 1
            return known
        vector = np.asarray(self._embedder.embed(self._load(path), None), np.float32).reshape(-1)
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or norm == 0.0:
            raise ImageError(f"{path}: the encoder gave a vector of length {norm}")
        self.made += 1
        self.fresh[digest] = vector / np.float32(norm)
        return self.fresh[digest]


def _open_frame(path: Path) -> Frame:
    from gog_edge.image.frame import Frame

    return Frame.open(path)


def ensure_same_encoder(index: LocalIndex, embedder: Embedder) -> None:
    """Refuse to search `index` with another encoder than the one that made it.

    Raises:
        SearchIndexError: in one line, with the fix.
    """
    if not index.encoder:
        raise SearchIndexError(f"{index.folder}: holds no image vectors; rebuild it with --bundle or --encoder")
    index.store.check_encoder(embedder.fingerprint)
