"""The SQLite file: schema, version, a small pool of connections. WAL, so readers never block the writer."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gog_edge.disk import leftovers
from gog_edge.errors import SearchIndexError
from gog_edge.search.local.names import stored_id
from gog_edge.search.local.text import TOKENIZER, normalise

log = logging.getLogger("gog_edge.search")
SCHEMA_VERSION = 2
DATABASE = "index.db"
MAX_IDLE = 8
_OLD_WORDS = 1  # the version that only splits words and composes ids differently: both are made anew from the entries
_BATCH = 2000
_REBUILD = "rebuild it with `gog-edge index build --force`"
_MENDS = {  # what SQLite says: what helps
    "full": "free some space",
    "locked": "try again",
    "readonly": "make its folder writable",
    "unable to open": "check that its folder is there and may be read and written",
    "disk I/O": "check the disk",
}

_WORDS = f"""
CREATE VIRTUAL TABLE entity_fts USING fts5(title, text, content='', tokenize="{TOKENIZER}");
CREATE VIRTUAL TABLE entity_terms USING fts5vocab(entity_fts, row);
"""
# `entity_fts` is contentless: it holds the normalised words only, the readable text lives in `entities` once.
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entities (
  row INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  title TEXT NOT NULL,
  text TEXT NOT NULL,
  source TEXT NOT NULL,
  content BLOB NOT NULL UNIQUE
);
CREATE TABLE images (
  key INTEGER PRIMARY KEY AUTOINCREMENT,
  entity INTEGER NOT NULL REFERENCES entities(row) ON DELETE CASCADE,
  path TEXT NOT NULL,
  hash BLOB,
  vector BLOB
);
CREATE INDEX images_entity ON images(entity);
CREATE INDEX images_hash ON images(hash) WHERE vector IS NOT NULL;
CREATE TABLE relations (
  entity INTEGER NOT NULL REFERENCES entities(row) ON DELETE CASCADE,
  name TEXT NOT NULL,
  target TEXT NOT NULL,
  PRIMARY KEY (entity, name, target)
) WITHOUT ROWID;
CREATE INDEX entities_source ON entities(source) WHERE source <> '';
CREATE INDEX relations_target ON relations(target);
{_WORDS}PRAGMA user_version = {SCHEMA_VERSION};
"""


class Database:
    """Connections to one index file. Thread-safe: a connection is used by one thread at a time.

    Args:
        folder: the index folder.
        create: make a new file (its folder exists and holds none).
        writable: False opens read-only, and works on a read-only medium.

    Raises:
        SearchIndexError: no index there, not an index, another schema version, or no FTS5 in this SQLite.
    """

    def __init__(self, folder: Path, *, create: bool = False, writable: bool = True) -> None:
        self.folder = folder
        leftovers.sweep_once(folder)
        self.path = folder / DATABASE
        self.writable = writable
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        if create:
            if self.path.exists():
                raise SearchIndexError(f"{folder}: an index is already there; use `gog-edge index add`, or --force")
            folder.mkdir(parents=True, exist_ok=True)
            self._create()
        elif not self._found():
            raise SearchIndexError(f"{folder}: no index there (no {DATABASE}); build one with `gog-edge index build`")
        else:
            self._check()

    def _found(self) -> bool:
        """Whether there is an index; one that a killed `build --force` had put away is put back."""
        if not self.path.is_file():
            leftovers.sweep_once(self.folder.absolute().parent)
        return self.path.is_file()

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """A connection for the duration of a block: taken from the idle ones, given back afterwards.

        Raises:
            SearchIndexError: whatever SQLite reports inside of the block.
        """
        with self._lock:
            if self._closed:
                raise SearchIndexError(f"{self.folder}: the index is closed")
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = self._connect()
            yield connection
        except (sqlite3.Error, UnicodeDecodeError) as e:  # a damaged page can hold anything
            problem = " ".join(str(e).split())
            mend = next((m for word, m in _MENDS.items() if word in problem), _REBUILD)
            raise SearchIndexError(f"{self.path}: {problem}; {mend}") from e
        finally:
            with self._lock:
                if connection is not None and not self._closed and len(self._idle) < MAX_IDLE:
                    self._idle.append(connection)
                    connection = None
            if connection is not None:
                connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: commits at the end, rolls back on any error or kill."""
        with self.use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def meta(self, key: str, default: str = "") -> str:
        """A value of the meta table."""
        with self.use() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else str(row[0])

    def close(self) -> None:
        """Close every idle connection; those in use close when they are given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        if self.writable:
            connection = sqlite3.connect(self.path, timeout=30.0, check_same_thread=False, isolation_level=None)
        else:
            # WAL needs a shared-memory file beside the database; a read-only medium can't have one, and needs none.
            frozen = not os.access(self.folder, os.W_OK) and not self.path.with_name(DATABASE + "-wal").exists()
            uri = self.path.resolve().as_uri() + ("?mode=ro&immutable=1" if frozen else "?mode=ro")
            connection = sqlite3.connect(uri, uri=True, timeout=30.0, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA mmap_size = 268435456")
        if self.writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _create(self) -> None:
        try:
            with self.use() as connection:
                connection.executescript("BEGIN;" + _SCHEMA + "COMMIT;")
        except SearchIndexError as e:
            self.close()
            needs = " (this SQLite needs FTS5)" if "fts5" in str(e).lower() else ""
            raise SearchIndexError(f"{e}{needs}") from e

    def _check(self) -> None:
        try:
            with self.use() as connection:
                version = int(connection.execute("PRAGMA user_version").fetchone()[0])
                if version == SCHEMA_VERSION:
                    connection.execute("SELECT 1 FROM meta LIMIT 1").fetchone()
                    return
            if version == _OLD_WORDS:
                self._renew_words()
                return
        except SearchIndexError:
            self.close()
            raise
        self.close()
        raise SearchIndexError(
            f"{self.path}: schema version {version}, this gog-edge reads {SCHEMA_VERSION}; "
            "rebuild it with `gog-edge index build --force`"
        )

    def _renew_words(self) -> None:
        """Bring an index of version 1 up to date: entries, pictures and vectors stay, words are read again.

        Raises:
            SearchIndexError: the folder is not writable.
        """
        if not os.access(self.path, os.W_OK) or not os.access(self.folder, os.W_OK):
            raise SearchIndexError(
                f"{self.path}: its words were read by an older gog-edge and must be read again, but it can't be "
                f"written; run `gog-edge index info {self.folder}` as a user who may write there"
            )
        log.info("%s: words are read again, once for this version", self.folder)
        connection = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] == _OLD_WORDS:  # nobody else was faster
                _read_words(connection)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except sqlite3.Error as e:
            raise SearchIndexError(f"{self.path}: its words can't be read again ({e}); free some space") from e
        finally:
            connection.close()


def beyond(last: object, after: int) -> int:
    """The row to go on behind, after rows that were asked for in order. A damaged tree gives the same ones for ever.

    Raises:
        SearchIndexError: it does.
    """
    if not isinstance(last, int) or last <= after:
        raise SearchIndexError(f"the index is damaged: its rows go in a circle; {_REBUILD}")
    return last


def _read_words(connection: sqlite3.Connection) -> None:
    """Make the full-text tables anew from the entries, and compose ids as they are composed now."""
    connection.execute("DROP TABLE entity_terms")
    connection.execute("DROP TABLE entity_fts")
    for statement in _WORDS.strip().splitlines():
        connection.execute(statement)
    after = 0
    while rows := connection.execute(
        "SELECT row, title, text, id FROM entities WHERE row > ? ORDER BY row LIMIT ?", (after, _BATCH)
    ).fetchall():
        connection.executemany(
            "INSERT INTO entity_fts (rowid, title, text) VALUES (?, ?, ?)",
            [(row, normalise(title), normalise(text)) for row, title, text, _ in rows],
        )
        composed = [(stored_id(i), row) for row, _, _, i in rows if stored_id(i) != i]
        connection.executemany("UPDATE OR IGNORE entities SET id = ? WHERE row = ?", composed)
        after = beyond(rows[-1][0], after)
    targets = [t for (t,) in connection.execute("SELECT DISTINCT target FROM relations") if stored_id(t) != t]
    connection.executemany(
        "UPDATE OR IGNORE relations SET target = ? WHERE target = ?", [(stored_id(t), t) for t in targets]
    )
