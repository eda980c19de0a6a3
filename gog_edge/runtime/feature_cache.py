"""Vision features kept by content: the same pixels at the same size are encoded once for all callers.

Keyed by what the tower really sees (frame digest, whole-pixel box, patch grid), so a changed image can never match an
old entry, and a region that rounds to the same pixels is a hit. Two threads that want the same key compute it once.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from gog_edge.deadline import UNLIMITED, Budget, DeadlineReached
from gog_edge.disk import leftovers
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.base import Features
from gog_edge.errors import CancelledError, SessionError

log = logging.getLogger("gog_edge.vision")


@dataclass(frozen=True)
class FeatureKey:
    """What one run of the tower sees. `box`: x0, y0, x1, y1 in whole pixels of the frame; `grid`: rows, columns."""

    digest: str
    box: tuple[int, int, int, int]
    grid: tuple[int, int]


@dataclass(frozen=True)
class CacheCounts:
    hits: int
    misses: int
    disk_hits: int
    bytes: int
    entries: int


class FeatureCache:
    """Least recently used first out, by bytes. Thread-safe.

    Args:
        max_bytes: of features in memory; 0 keeps nothing (requests in flight are still shared).
        disk: keeps evicted and new features across processes, or None.
    """

    def __init__(self, max_bytes: int, disk: DiskFeatures | None = None) -> None:
        self._max = max_bytes
        self._disk = disk
        self._kept: OrderedDict[FeatureKey, Features] = OrderedDict()
        self._running: dict[FeatureKey, Future[Features]] = {}
        self._lock = threading.Lock()
        self._bytes = self._hits = self._misses = self._disk_hits = 0

    def get(
        self, key: FeatureKey, compute: Callable[[], Features], budget: Budget = UNLIMITED
    ) -> tuple[Features, bool]:
        """(features, whether they were there already or are made by another thread).

        Raises:
            CancelledError, DeadlineReached: the budget ended; another thread's computation continues.
            Exception: whatever `compute` raised.
        """
        while True:
            with self._lock:
                found = self._kept.get(key)
                if found is not None:
                    self._kept.move_to_end(key)
                    self._hits += 1
                    return found, True
                running = self._running.get(key)
                if running is None:
                    mine: Future[Features] = Future()
                    self._running[key] = mine
                    break
            shared = _await(running, budget)
            if shared is not None:
                with self._lock:
                    self._hits += 1
                return shared, True
            # the thread that computed it was cancelled: this one takes over
        try:
            return self._compute(key, mine, compute)
        finally:
            del mine  # holds an error whose traceback holds this call: a circle, and a frame in it, until collected

    def peek(self, key: FeatureKey) -> bool:
        """Whether the features are in memory now."""
        with self._lock:
            return key in self._kept

    def counts(self) -> CacheCounts:
        """Hits and misses so far, and what is kept now."""
        with self._lock:
            return CacheCounts(self._hits, self._misses, self._disk_hits, self._bytes, len(self._kept))

    def clear(self) -> None:
        """Forget what is in memory."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _compute(
        self, key: FeatureKey, mine: Future[Features], compute: Callable[[], Features]
    ) -> tuple[Features, bool]:
        try:
            features = self._disk.load(key) if self._disk is not None else None
            from_disk = features is not None
            if features is None:
                features = compute()
        except BaseException as e:
            with self._lock:
                del self._running[key]
            mine.set_exception(e)
            del mine, compute  # as in `get`
            raise
        with self._lock:
            self._keep(key, features)
            if from_disk:
                self._disk_hits += 1
            else:
                self._misses += 1
            del self._running[key]
        mine.set_result(features)
        if self._disk is not None and not from_disk:
            self._disk.save(key, features)
        return features, from_disk

    def _keep(self, key: FeatureKey, features: Features) -> None:
        if features.nbytes > self._max:
            return
        self._kept[key] = features
        self._bytes += features.nbytes
        while self._bytes > self._max:
            _, old = self._kept.popitem(last=False)
            self._bytes -= old.nbytes


def _await(running: Future[Features], budget: Budget) -> Features | None:
    """Another thread's result; None if that thread was cancelled or ran out of its own time."""
    budget.wait(running)
    if isinstance(running.exception(), (CancelledError, DeadlineReached)):
        return None
    try:
        return running.result()
    finally:
        del running  # as in `get`


class DiskFeatures:
    """Features as files in a folder, oldest out first. A file that can't be read or written counts as absent.

    Args:
        folder: created when needed.
        fingerprint: of the tower (`Bundle.vision_fingerprint`); other towers' files are never used.
        max_bytes: of all files of this tower together.
    """

    def __init__(self, folder: Path, fingerprint: str, max_bytes: int) -> None:
        self._folder = folder / fingerprint
        leftovers.sweep_once(self._folder)
        self._fingerprint = fingerprint
        self._max = max_bytes

    def load(self, key: FeatureKey) -> Features | None:
        """The features, or None."""
        path = self._path(key)
        try:
            if not path.is_file():
                return None
            header, arrays = read_tensors(path)
            if header.get("key") != _spell(key) or header.get("fingerprint") != self._fingerprint:
                raise SessionError(f"{path} holds another image")
            leftovers.touch(path)
            return Features(arrays["main"].copy(), arrays["deepstack"].copy() if "deepstack" in arrays else None)
        except (SessionError, OSError, KeyError) as e:
            log.warning("a cached feature file is left out: %s", e)
            leftovers.remove(path)
            return None

    def save(self, key: FeatureKey, features: Features) -> None:
        """Keep the features, or say in the log why not."""
        arrays = {"main": features.main}
        if features.deepstack is not None:
            arrays["deepstack"] = features.deepstack
        try:
            write_tensors(self._path(key), {"key": _spell(key), "fingerprint": self._fingerprint}, arrays)
            self._prune()
        except (SessionError, OSError) as e:
            log.warning("vision features are not kept on disk: %s", e)

    def _prune(self) -> None:
        files = [(p.stat(), p) for p in self._folder.glob("*.gogt")]
        total = sum(s.st_size for s, _ in files)
        now = time.time()
        for stat, path in sorted(files, key=lambda f: f[0].st_mtime):
            if total <= self._max:
                return
            if (now - stat.st_mtime > 1 or stat.st_size > self._max) and leftovers.remove(path):
                total -= stat.st_size

    def _path(self, key: FeatureKey) -> Path:
        return self._folder / f"{hashlib.sha256(_spell(key).encode()).hexdigest()[:40]}.gogt"


def _spell(key: FeatureKey) -> str:
    return f"{key.digest}:{key.box}:{key.grid}"
