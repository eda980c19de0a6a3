"""Results kept on disk for a while: one SQLite file, shared by threads and processes. Holds hits and pages, no keys."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gog_edge.disk import leftovers
from gog_edge.search.base import Page
from gog_edge.types import Hit

log = logging.getLogger("gog_edge.search")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS results_expires ON results(expires);
"""
_SWEEP_EVERY = 256
_DAMAGED = ("malformed", "not a database", "no such table", "no such column", "disk I/O error", "UTF-8", "corrupt")


class ResultCache:
    """Key -> text with an expiry. A cache that can't be read or written is logged and does without.

    Args:
        path: of the file; its folder is made.
        seconds: how long a result is good for.
        max_entries: the oldest go beyond it.
        clock: wall time (tests give their own).
    """

    def __init__(
        self, path: Path, seconds: float, *, max_entries: int = 20_000, clock: Callable[[], float] = time.time
    ) -> None:
        self.path, self._seconds, self._max, self._clock = path, seconds, max_entries, clock
        self._lock = threading.Lock()
        self._writes = 0
        self._connection: sqlite3.Connection | None = None

    def get(self, key: str) -> str | None:
        """The value, unless it is missing or expired."""
        with self._open("read") as c:
            if c is not None:
                row = c.execute(
                    "SELECT value FROM results WHERE key = ? AND expires > ?", (key, self._clock())
                ).fetchone()
                return None if row is None else str(row[0])
        return None

    def put(self, key: str, value: str) -> None:
        """Keep a value; an older one is replaced."""
        with self._open("written") as c:
            if c is None:
                return
            with c:
                c.execute(
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, value, self._clock() + self._seconds)
                )
                self._writes += 1
                if self._writes % _SWEEP_EVERY == 1:
                    c.execute("DELETE FROM results WHERE expires <= ?", (self._clock(),))
                    oldest = "SELECT key FROM results ORDER BY expires DESC LIMIT -1 OFFSET ?"
                    c.execute(f"DELETE FROM results WHERE key IN ({oldest})", (self._max,))

    def close(self) -> None:
        """Close the file; it is opened again when needed. Idempotent."""
        with self._lock:
            self._drop()

    @contextmanager
    def _open(self, what: str) -> Iterator[sqlite3.Connection | None]:
        """The one connection; trouble with it is logged, and the next call starts again."""
        with self._lock:
            connection = None
            try:
                connection = self._connect()
            except (sqlite3.Error, OSError) as e:
                log.warning("search cache %s can't be opened (%s)", self.path, e)
                self._discard(e)
            try:
                yield connection
            except (sqlite3.Error, OSError) as e:
                log.warning("search cache %s can't be %s (%s)", self.path, what, e)
                self._drop()
                self._discard(e)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=5.0, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _discard(self, error: Exception) -> None:
        """Remove a file that is damaged, or no database at all, so that the next result begins a new one."""
        if any(word in str(error) for word in _DAMAGED):
            for path in (self.path, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))):
                leftovers.remove(path)


def encode_hits(hits: Sequence[Hit]) -> str:
    """Hits as JSON."""
    return json.dumps([asdict(h) for h in hits])


def decode_hits(text: str) -> list[Hit]:
    """Hits of `encode_hits`."""
    return [hit_from(fields) for fields in json.loads(text)]


def hit_from(fields: dict[str, Any]) -> Hit:
    """A hit from JSON fields; unknown ones are ignored, wrong ones become text."""
    score = fields.get("score")
    names = ("title", "text", "source", "entity", "image")
    values = {name: str(fields.get(name) or "") for name in names}
    return Hit(score=float(score) if isinstance(score, (int, float)) else None, **values)


def encode_page(page: Page) -> str:
    """A page as JSON."""
    return json.dumps(asdict(page))


def decode_page(text: str) -> Page:
    """The page of `encode_page`."""
    return Page(**json.loads(text))
