"""Reading and writing entries of an index. Every write happens in a transaction: a kill leaves the last whole batch."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk.paths import is_address
from gog_edge.errors import SearchIndexError
from gog_edge.search.local.database import Database, beyond
from gog_edge.search.local.names import stored_id, stored_path
from gog_edge.search.local.record import MAX_TEXT_CHARS, MAX_TITLE_CHARS, Entity, Record
from gog_edge.search.local.text import normalise
from gog_edge.search.local.vectors import Vectors

_BATCH = 4096
_CHUNK = 500  # bound parameters a statement
ENCODER, ENCODER_FILE, DIM, DTYPE, DELETIONS = "encoder", "encoder_file", "dim", "vector_dtype", "deletions"


@dataclass(frozen=True)
class StoredImage:
    """A picture of a record on its way in: `path` as stored, `digest` of the file, `vector` [d] or None."""

    path: str
    digest: bytes | None
    vector: NDArray[np.float32] | None


class Store:
    """Entities, relations, pictures and vectors of one index."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._home = database.folder.resolve()

    # Reading

    def counts(self) -> dict[str, int]:
        """Entries, pages, relations, images and vectors."""
        with self.database.use() as c:
            return {
                name: int(c.execute(f"SELECT count(*) FROM {what}").fetchone()[0])
                for name, what in (
                    ("entries", "entities"),
                    ("pages", "entities WHERE kind = 'page'"),
                    ("relations", "relations"),
                    ("images", "images"),
                    ("vectors", "images WHERE vector IS NOT NULL"),
                )
            }

    def vector_state(self) -> tuple[int, int, int, int]:
        """(vectors, dim, deletions, last key): what a vector searcher is made from."""
        with self.database.use() as c:
            count, last = c.execute(
                "SELECT count(*), coalesce(max(key), 0) FROM images WHERE vector IS NOT NULL"
            ).fetchone()
            meta = dict(c.execute("SELECT key, value FROM meta").fetchall())
        return int(count), int(meta.get(DIM, 0)), int(meta.get(DELETIONS, 0)), int(last)

    def version(self) -> int:
        """A number that changes with every committed write: rows ever written to the log of changes."""
        return int(self.database.meta("version", "0"))

    def vectors(self, after: int = 0) -> Iterator[Vectors]:
        """(keys [n] int64, vectors [n, d] float32) of all keys greater than `after`, ascending."""
        dim = int(self.database.meta(DIM, "0"))
        dtype = np.dtype(self.database.meta(DTYPE, "float16"))
        while True:
            with self.database.use() as c:
                rows = c.execute(
                    "SELECT key, vector FROM images WHERE vector IS NOT NULL AND key > ? ORDER BY key LIMIT ?",
                    (after, _BATCH),
                ).fetchall()
            if not rows:
                return
            flat = np.frombuffer(b"".join(r[1] for r in rows), dtype=dtype)
            if flat.size != len(rows) * dim:
                raise SearchIndexError(f"{self.database.path}: vectors of another length than {dim}; rebuild the index")
            yield np.array([r[0] for r in rows], np.int64), flat.reshape(len(rows), dim).astype(np.float32)
            after = beyond(rows[-1][0], after)

    def vector_of(self, digest: bytes) -> NDArray[np.float32] | None:
        """The stored vector of a picture with this SHA-256, [d] float32, or None."""
        with self.database.use() as c:
            row = c.execute(
                "SELECT vector FROM images WHERE hash = ? AND vector IS NOT NULL LIMIT 1", (digest,)
            ).fetchone()
        if row is None:
            return None
        return np.frombuffer(row[0], np.dtype(self.database.meta(DTYPE, "float16"))).astype(np.float32)

    def entities(self, rows: Sequence[int]) -> dict[int, Entity]:
        """Entries by row number; numbers that are gone are left out."""
        found: dict[int, Entity] = {}
        with self.database.use() as c:
            for part in _chunks(rows):
                marks = ",".join("?" * len(part))
                pictures: dict[int, list[str]] = {}
                for entity, path in c.execute(
                    f"SELECT entity, path FROM images WHERE entity IN ({marks}) ORDER BY key", part
                ):
                    pictures.setdefault(entity, []).append(self.resolve(path))
                for number, identity, kind, title, text, source in c.execute(
                    f"SELECT row, id, kind, title, text, source FROM entities WHERE row IN ({marks})", part
                ):
                    shown = tuple(pictures.get(number, ()))
                    found[number] = Entity(number, identity, kind, title, text, source, shown)
        return found

    def titles(self, rows: Sequence[int]) -> dict[int, str]:
        """Titles by row number."""
        found: dict[int, str] = {}
        with self.database.use() as c:
            for part in _chunks(rows):
                marks = ",".join("?" * len(part))
                found.update(c.execute(f"SELECT row, title FROM entities WHERE row IN ({marks})", part).fetchall())
        return found

    def entities_of(self, keys: Sequence[int]) -> dict[int, int]:
        """Vector key -> entity row, for keys that still exist."""
        found: dict[int, int] = {}
        with self.database.use() as c:
            for part in _chunks(keys):
                marks = ",".join("?" * len(part))
                found.update(c.execute(f"SELECT key, entity FROM images WHERE key IN ({marks})", part).fetchall())
        return found

    def neighbours(self, row: int, limit: int) -> list[tuple[str, int]]:
        """(relation, row) of entries that `row` points at, then of those that point at it; stable order."""
        with self.database.use() as c:
            forward = c.execute(
                "SELECT r.name, e.row FROM relations r JOIN entities e ON e.id = r.target "
                "WHERE r.entity = ? ORDER BY r.name, e.row LIMIT ?",
                (row, limit),
            ).fetchall()
            back = c.execute(
                "SELECT r.name, r.entity FROM relations r JOIN entities e ON e.id = r.target "
                "WHERE e.row = ? ORDER BY r.name, r.entity LIMIT ?",
                (row, limit),
            ).fetchall()
        return [(str(n), int(r)) for n, r in [*forward, *back]]

    def resolve(self, stored: str | bytes) -> str:
        """A stored path as an absolute one; addresses as they are."""
        path = os.fsdecode(stored)
        return path if is_address(path) else os.path.normpath(self._home / path)

    def relative(self, path: Path) -> str:
        """How a file's path is stored: relative to the index folder, so both can move together."""
        return Path(os.path.relpath(path.resolve(), self._home)).as_posix()

    # Writing (inside a transaction)

    def claim_encoder(self, c: sqlite3.Connection, fingerprint: str, dim: int, file: str = "") -> None:
        """Remember the encoder of the first vector, and its file where it has one; refuse any other afterwards.

        Raises:
            SearchIndexError: the index holds vectors of another encoder.
        """
        known = dict(c.execute("SELECT key, value FROM meta WHERE key IN (?, ?)", (ENCODER, DIM)).fetchall())
        if not known:
            c.executemany(
                "INSERT INTO meta (key, value) VALUES (?, ?)",
                [
                    (ENCODER, fingerprint),
                    (ENCODER_FILE, self.relative(Path(file)) if file else ""),
                    (DIM, str(dim)),
                    (DTYPE, "float16"),
                ],
            )
            return
        self.check_encoder(fingerprint, known.get(ENCODER, ""))
        if int(known.get(DIM, 0)) != dim:
            raise SearchIndexError(f"{self.database.folder}: holds vectors of length {known.get(DIM)}, got {dim}")

    def check_encoder(self, fingerprint: str, known: str | None = None) -> None:
        """Raise unless `fingerprint` made this index's vectors (an index without vectors accepts all).

        Raises:
            SearchIndexError: another encoder made them.
        """
        known = self.database.meta(ENCODER) if known is None else known
        if known and known != fingerprint:
            raise SearchIndexError(
                f"{self.database.folder}: its vectors were made by encoder {known}, this one is {fingerprint}; "
                "use the bundle or --encoder it was built with, or rebuild it with `gog-edge index build --force`"
            )

    def put(self, c: sqlite3.Connection, record: Record, images: Sequence[StoredImage]) -> str:
        """Insert or replace one record.

        Returns:
            "added", "updated", "unchanged", or "duplicate of ID" (the same content under another id; not stored).
        """
        content = record.content_hash(tuple(i.digest for i in images if i.digest is not None))
        identity = stored_id(record.id) or f"auto/{content.hex()[:16]}"
        twin = c.execute("SELECT id, row FROM entities WHERE content = ?", (content,)).fetchone()
        if twin is not None and twin[0] != identity:
            return f"duplicate of {twin[0]}"
        if twin is not None:
            self._fill_vectors(c, int(twin[1]), images)
            return "unchanged"
        old = c.execute("SELECT row, title, text FROM entities WHERE id = ?", (identity,)).fetchone()
        if old is not None:
            self._forget(c, *old)
        title, text = record.title[:MAX_TITLE_CHARS], record.text[:MAX_TEXT_CHARS]
        title, text, source = (s.encode("utf-8", "replace").decode("utf-8") for s in (title, text, record.source))
        row = c.execute(
            "INSERT INTO entities (row, id, kind, title, text, source, content) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (None if old is None else old[0], identity, record.kind, title, text, source, content),
        ).lastrowid
        c.execute(
            "INSERT INTO entity_fts (rowid, title, text) VALUES (?, ?, ?)", (row, normalise(title), normalise(text))
        )
        c.executemany(
            "INSERT OR IGNORE INTO relations (entity, name, target) VALUES (?, ?, ?)",
            [(row, stored_id(name), stored_id(t)) for name, targets in record.relations.items() for t in targets],
        )
        c.executemany(
            "INSERT INTO images (entity, path, hash, vector) VALUES (?, ?, ?, ?)",
            [(row, stored_path(i.path), i.digest, _blob(i.vector)) for i in images],
        )
        return "added" if old is None else "updated"

    def remove(self, c: sqlite3.Connection, ids: Iterable[str]) -> int:
        """Delete entries by id; returns how many there were."""
        gone = 0
        for identity in ids:
            old = c.execute("SELECT row, title, text FROM entities WHERE id = ?", (stored_id(identity),)).fetchone()
            if old is not None:
                self._forget(c, *old)
                gone += 1
        return gone

    def touch(self, c: sqlite3.Connection) -> None:
        """Count a write, so that open readers see that something changed."""
        c.execute(
            "INSERT INTO meta (key, value) VALUES ('version', '1') "
            "ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)"
        )

    def _forget(self, c: sqlite3.Connection, row: int, title: str, text: str) -> None:
        (lost,) = c.execute("SELECT count(vector) FROM images WHERE entity = ?", (row,)).fetchone()
        # A contentless FTS5 table is told what it had indexed.
        c.execute(
            "INSERT INTO entity_fts (entity_fts, rowid, title, text) VALUES ('delete', ?, ?, ?)",
            (row, normalise(title), normalise(text)),
        )
        c.execute("DELETE FROM entities WHERE row = ?", (row,))
        if lost:
            c.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + excluded.value AS TEXT)",
                (DELETIONS, str(lost)),
            )

    def _fill_vectors(self, c: sqlite3.Connection, row: int, images: Sequence[StoredImage]) -> None:
        """Give an entry that came without an encoder its vectors. New keys: a searcher only looks after the last."""
        missing = {
            bytes(digest): (key, path)
            for key, path, digest in c.execute(
                "SELECT key, path, hash FROM images WHERE entity = ? AND vector IS NULL AND hash IS NOT NULL", (row,)
            ).fetchall()
        }
        for image in images:
            if image.vector is None or image.digest is None or image.digest not in missing:
                continue
            key, path = missing.pop(image.digest)
            c.execute("DELETE FROM images WHERE key = ?", (key,))
            c.execute(
                "INSERT INTO images (entity, path, hash, vector) VALUES (?, ?, ?, ?)",
                (row, path, image.digest, _blob(image.vector)),
            )


def _blob(vector: NDArray[np.float32] | None) -> bytes | None:
    return None if vector is None else vector.astype(np.float16).tobytes()


def _chunks(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(values), _CHUNK):
        yield values[at : at + _CHUNK]
