"""The local index as one object: open, search by text, by vector or by both, say what is in it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import SearchIndexError
from gog_edge.search.base import Cut
from gog_edge.search.local.database import Database, beyond
from gog_edge.search.local.lexical import Lexical
from gog_edge.search.local.names import stored_id
from gog_edge.search.local.rank import Scored, chosen, ordered, related_first
from gog_edge.search.local.record import Entity
from gog_edge.search.local.store import DTYPE, ENCODER, ENCODER_FILE, Store
from gog_edge.search.local.vectors import VectorSearcher
from gog_edge.types import Hit

NEIGHBOURS = 16  # relations looked at for each expanded hit
UNIT_TOLERANCE = 1e-2


class LocalIndex:
    """An index folder opened for searching (and, when `writable`, for adding). Thread-safe.

    Raises:
        SearchIndexError: missing, corrupt, or of another schema version.
    """

    def __init__(self, folder: str | Path, *, writable: bool = False, create: bool = False) -> None:
        self.folder = Path(folder)
        self.database = Database(self.folder, create=create, writable=writable or create)
        self.store = Store(self.database)
        self._lock = threading.Lock()
        self._searcher: tuple[int, VectorSearcher | None] = (-1, None)
        self._lexical: tuple[int, Lexical] = (-1, Lexical(self.store))

    def __enter__(self) -> LocalIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Idempotent."""
        self.database.close()

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder that made the vectors; empty when there are none."""
        return self.database.meta(ENCODER)

    @property
    def encoder_file(self) -> str:
        """The ONNX encoder that made the vectors, as a path; empty for a policy's tower."""
        stored = self.database.meta(ENCODER_FILE)
        return self.store.resolve(stored) if stored else ""

    @property
    def vector_search(self) -> str:
        """How vectors are searched: "exact", "usearch", or empty without vectors."""
        searcher = self._current()
        return "" if searcher is None else searcher.kind

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the vector structure now instead of at the first search; `progress(done, total)` while it is made."""
        self._current(progress)

    def search(
        self,
        text: str = "",
        vector: NDArray[np.float32] | None = None,
        *,
        k: int = 5,
        cut: Cut = "gap",
        expand: int = 0,
    ) -> list[Hit]:
        """Entries for a text, a picture's vector, or both (weighted reciprocal rank fusion), best first.

        Args:
            text: free text; never interpreted as query syntax.
            vector: [d] float32 unit vector of this index's encoder.
            k: most results to give.
            cut: how many are given (`search.base.Cut`).
            expand: append up to this many entries that are related to the results.

        Raises:
            SearchIndexError: no vectors in this index, a vector of another length, or a corrupt file.
        """
        if k < 1:
            return []
        pool = max(4 * k, 32)
        by_text = self._by_text(text, pool) if text.strip() else []
        by_image = self._by_vector(vector, pool) if vector is not None else []
        rows = chosen(by_text, by_image if vector is not None else None, k, pool, cut)
        shown = by_text if vector is None else by_image
        hits = self._hits(rows, {s.entity: s.score for s in shown})
        return hits + self._related(rows, text, expand) if expand > 0 else hits

    def find(self, identity: str) -> Entity | None:
        """The entry with this id, else the first with this source.

        Raises:
            SearchIndexError: the file can't be read.
        """
        with self.database.use() as c:
            row = c.execute(
                "SELECT row FROM entities WHERE id = ?1 OR source = ?2 ORDER BY id <> ?1, row LIMIT 1",
                (stored_id(identity), identity.encode("utf-8", "replace").decode("utf-8")),
            ).fetchone()
        return None if row is None else self.store.entities([row[0]]).get(row[0])

    def entities(self) -> Iterator[Entity]:
        """Every entry, by row number."""
        after = 0
        while True:
            with self.database.use() as c:
                rows = [
                    r[0] for r in c.execute("SELECT row FROM entities WHERE row > ? ORDER BY row LIMIT 500", (after,))
                ]
            if not rows:
                return
            found = self.store.entities(rows)
            yield from (found[row] for row in rows if row in found)
            after = beyond(rows[-1], after)

    def remove(self, ids: Sequence[str]) -> int:
        """Delete entries by id; returns how many there were. The index must be writable."""
        with self.database.transaction() as c:
            gone = self.store.remove(c, ids)
            self.store.touch(c)
        return gone

    def info(self) -> dict[str, object]:
        """What is in the index, for people and for JSON."""
        count, dim, deletions, _ = self.store.vector_state()
        return {
            "folder": str(self.folder),
            "bytes": sum(f.stat().st_size for f in self.folder.iterdir() if f.is_file()),
            **self.store.counts(),
            "dim": dim,
            "vector_dtype": self.database.meta(DTYPE, "float16") if count else "",
            "encoder": self.encoder,
            "encoder_file": self.encoder_file,
            "deleted_vectors": deletions,
            "sqlite": sqlite3.sqlite_version,
        }

    def _current(self, progress: Callable[[int, int], None] | None = None) -> VectorSearcher | None:
        """The searcher of what is in the file now; created again after any process has added something."""
        with self._lock:
            version = self.store.version()
            if version != self._searcher[0]:
                count, dim, deletions, last = self.store.vector_state()
                searcher = None
                if count:
                    searcher = VectorSearcher(
                        self.folder,
                        self.store.vectors,
                        count=count,
                        dim=dim,
                        deletions=deletions,
                        last_key=last,
                        writable=self.database.writable,
                        progress=progress,
                    )
                self._searcher = (version, searcher)
            return self._searcher[1]

    def _by_text(self, text: str, pool: int) -> list[Scored]:
        with self._lock:
            version = self.store.version()
            if version != self._lexical[0]:
                self._lexical = (version, Lexical(self.store))
            lexical = self._lexical[1]
        return lexical.rank(text, pool)

    def _by_vector(self, vector: NDArray[np.float32], pool: int) -> list[Scored]:
        searcher = self._current()
        if searcher is None:
            raise SearchIndexError(
                f"{self.folder}: holds no image vectors; build it with --bundle or --encoder to search with images"
            )
        query = np.asarray(vector, np.float32).reshape(-1)
        if query.size != searcher.dim:
            raise SearchIndexError(f"{self.folder}: vectors have length {searcher.dim}, the query has {query.size}")
        norm = float(np.linalg.norm(query))
        if not np.isfinite(norm) or abs(norm - 1.0) > UNIT_TOLERANCE:
            raise SearchIndexError(f"the query vector has length {norm:.3f}; embedders give unit vectors")
        found = searcher.search(query, pool)
        owner = self.store.entities_of([key for key, _ in found])
        best: dict[int, float] = {}
        for key, score in found:
            entity = owner.get(key)
            if entity is not None:
                best[entity] = max(score, best.get(entity, -2.0))
        # float16 storage: differences below 1e-6 are rounding, and ties go by entity.
        return ordered([Scored(entity, round(score, 6)) for entity, score in best.items()])

    def _hits(self, rows: Sequence[int], scores: dict[int, float]) -> list[Hit]:
        entities = self.store.entities(rows)
        return [
            Hit(
                title=e.title,
                text=e.text,
                source=e.source,
                score=scores.get(e.row),
                entity=e.id,
                image=e.images[0] if e.images else "",
            )
            for e in (entities[row] for row in rows if row in entities)
        ]

    def _related(self, rows: Sequence[int], text: str, limit: int) -> list[Hit]:
        """Neighbours of the results over relations, those that share words with `text` first, then in stable order."""
        seen = set(rows)
        parent: dict[int, int] = {}
        for row in rows:
            for _, other in self.store.neighbours(row, NEIGHBOURS):
                if other not in seen:
                    parent.setdefault(other, row)
        order = related_first(parent, self.store.titles([*rows, *parent]), text)
        return self._hits(order[:limit], {})
