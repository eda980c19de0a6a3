"""The KV of what every conversation begins with (system prompt and tool schema): computed once per bundle.

Kept in memory for the process and in the user's cache folder for the next one. An entry is used only if its bundle
fingerprint and its token ids are equal to what the session is about to run, so it can't be stale.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk import leftovers
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.errors import SessionError

log = logging.getLogger("gog_edge.session")

MIN_TOKENS = 16  # a shorter prefix is run faster than looked up
_IN_MEMORY = 4
_ON_DISK = 16
KvArrays = list[NDArray[Any]]


class PrefixCache:
    """KV rows by token ids. Thread-safe.

    Args:
        folder: where entries are kept across processes.
        fingerprint: of the bundle.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        leftovers.sweep_once(folder)
        self._fingerprint = fingerprint
        self._kept: OrderedDict[str, KvArrays] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, ids: NDArray[np.int32]) -> KvArrays | None:
        """KV arrays for exactly these ids, or None."""
        if len(ids) < MIN_TOKENS:
            return None
        name = self._name(ids)
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None:
                self._kept.move_to_end(name)
                return kept
        loaded = self._read(name, ids)
        if loaded is not None:
            self._keep(name, loaded)
        return loaded

    def save(self, ids: NDArray[np.int32], arrays: KvArrays) -> None:
        """Keep copies of `arrays`; a disk that is full or read-only is reported in the log, the memory copy stays."""
        if len(ids) < MIN_TOKENS:
            return
        name = self._name(ids)
        copies = [np.array(a) for a in arrays]
        self._keep(name, copies)
        header = {"kind": "prefix", "fingerprint": self._fingerprint}
        named = {"ids": np.asarray(ids, np.int32), **{f"kv.{i}": a for i, a in enumerate(copies)}}
        try:
            write_tensors(self._folder / f"{name}.gogt", header, named)
            self._prune()
        except (SessionError, OSError) as e:
            log.warning("the KV of the system prompt is not kept on disk: %s", e)

    def _read(self, name: str, ids: NDArray[np.int32]) -> KvArrays | None:
        path = self._folder / f"{name}.gogt"
        try:
            if not path.is_file():
                return None
            header, arrays = read_tensors(path)
            if header.get("fingerprint") != self._fingerprint or not np.array_equal(arrays["ids"], ids):
                raise SessionError(f"{path} belongs to another bundle or prompt")
            leftovers.touch(path)
            return [arrays[f"kv.{i}"] for i in range(len(arrays) - 1)]  # whose shapes `snapshots.unpack` checks
        except (SessionError, KeyError, OSError) as e:
            log.warning("a cached prompt prefix is left out: %s", e)
            leftovers.remove(path)
            return None

    def _keep(self, name: str, arrays: KvArrays) -> None:
        with self._lock:
            self._kept[name] = arrays
            self._kept.move_to_end(name)
            while len(self._kept) > _IN_MEMORY:
                self._kept.popitem(last=False)

    def _prune(self) -> None:
        files = sorted(self._folder.glob("*.gogt"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in files[_ON_DISK:]:
            leftovers.remove(old)

    def _name(self, ids: NDArray[np.int32]) -> str:
        h = hashlib.sha256(f"{self._fingerprint}:".encode())
        h.update(np.asarray(ids, "<i4").tobytes())
        return h.hexdigest()[:40]
