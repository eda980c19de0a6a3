"""Nearest vectors: exact numpy search while small, a usearch graph (HNSW) when large.

The vectors' home is SQLite; the graph is derived. Its file name carries what it was made from
(`vectors-<deletions>-<last key>.usearch`) and its hash lies beside it, so a file is either right or ignored. Vectors
added after the graph was made are searched exactly and merged, so a query never waits for a rebuild.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk import leftovers
from gog_edge.disk.files import seal, whole_file
from gog_edge.disk.stamps import sealed

log = logging.getLogger("gog_edge.search")
EXACT_LIMIT = 20_000  # vectors; below it one matrix product is faster than a graph and always right
EXACT_BYTES = 256 << 20  # of float32 in memory
TAIL_LIMIT = 20_000  # vectors added after the graph before `prepare` grows it
# Candidates that a search keeps (HNSW's ef). A fixed width finds less as a graph grows: of 1,000,000 clustered vectors
# 128 missed the nearest in 12 % of searches, 512 in none of 60.
WIDTH, MAX_WIDTH = 128, 1024

_NAME = re.compile(r"vectors-(\d+)-(\d+)\.usearch")

Vectors = tuple[NDArray[np.int64], NDArray[np.float32]]


class VectorSearcher:
    """Cosine search over unit vectors keyed by int64. Thread-safe after construction.

    Args:
        folder: where the derived graph lives.
        load: `load(after)` yields (keys [n], vectors [n, d] float32) of all keys greater than `after`, in order.
        count: vectors in all.
        dim: d.
        deletions: how many vectors were ever deleted; a graph of another number is stale.
        last_key: greatest key.
        writable: whether a graph may be written to `folder`.
        progress: called with (done, total) while a graph is made.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[int], Iterator[Vectors]],
        *,
        count: int,
        dim: int,
        deletions: int,
        last_key: int,
        writable: bool,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.count, self.dim = count, dim
        self._graph: Any = None
        self._lock = threading.Lock()
        after = 0
        if count > EXACT_LIMIT or count * dim * 4 > EXACT_BYTES:
            self._graph, after = _open_graph(folder, dim, deletions, last_key)
            behind = count - (0 if self._graph is None else len(self._graph))
            if self._graph is None or behind > TAIL_LIMIT:
                self._graph = _grow_graph(self._graph, load(after), count, dim, progress)
                after = last_key
                if writable:
                    _save_graph(self._graph, folder, deletions, last_key)
            self._graph.expansion_search = search_width(len(self._graph))
        self.keys, self.matrix = _gather(load(after), dim)

    @property
    def kind(self) -> str:
        """ "exact" or "usearch"."""
        return "exact" if self._graph is None else "usearch"

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """The `k` nearest as (key, cosine), best first, equal cosines by key.

        Args:
            vector: [d] float32, unit length.
        """
        found: list[tuple[int, float]] = []
        if len(self.keys):
            # One thread on purpose: searches run beside the engine, and a BLAS that waits for a second core that is
            # busy takes 20 times as long as it saves. The product is bound by memory either way.
            scores = np.einsum("ij,j->i", self.matrix, vector)
            top = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
            found += [(int(self.keys[i]), float(scores[i])) for i in top]
        if self._graph is not None:
            matches = self._graph.search(vector, k)
            found += [(int(m.key), 1.0 - float(m.distance)) for m in matches]
        return sorted(found, key=lambda f: (-round(f[1], 6), f[0]))[:k]

    @property
    def resident_bytes(self) -> int:
        """Bytes of vectors and graph in memory (or mapped)."""
        graph = 0 if self._graph is None else int(self._graph.memory_usage)
        return int(self.matrix.nbytes) + graph


def search_width(vectors: int) -> int:
    """Candidates that a search in a graph of so many vectors keeps."""
    return min(max(WIDTH, math.isqrt(vectors) // 2), MAX_WIDTH)


def _new_graph(dim: int) -> Any:
    import onnxruntime  # noqa: F401  # imported after usearch (2.26) it ends the process
    from usearch.index import Index

    # Inner product of unit vectors; half precision loses less than the vectors' own float16 storage did.
    return Index(ndim=dim, metric="ip", dtype="f16", connectivity=16, expansion_add=64)


def _open_graph(folder: Path, dim: int, deletions: int, last_key: int) -> tuple[Any, int]:
    """The best graph on disk and the last key in it, or (None, 0)."""
    best: tuple[int, Path] | None = None
    for path in folder.glob("vectors-*.usearch"):
        name = _NAME.fullmatch(path.name)
        usable = name is not None and int(name[1]) == deletions and int(name[2]) <= last_key
        if name is not None and usable and (best is None or int(name[2]) > best[0]):
            best = (int(name[2]), path)
    if best is None:
        return None, 0
    after, path = best
    graph = _new_graph(dim)
    try:
        if not sealed(path):  # a damaged one can end the process that reads it
            log.warning("%s is damaged or cut: it is made anew", path)
            return None, 0
        if after == last_key:
            graph.view(str(path))
        else:
            graph.load(str(path))
    except (OSError, RuntimeError, ValueError) as e:
        log.warning("%s can't be read (%s): it is made anew", path, e)
        return None, 0
    if graph.ndim != dim:
        return None, 0
    return graph, after


def _grow_graph(
    graph: Any, batches: Iterator[Vectors], count: int, dim: int, progress: Callable[[int, int], None] | None
) -> Any:
    graph = _new_graph(dim) if graph is None else graph
    for keys, vectors in batches:
        graph.add(keys, vectors)
        if progress is not None:
            progress(len(graph), count)
    return graph


def _save_graph(graph: Any, folder: Path, deletions: int, last_key: int) -> None:
    """Keep the graph with its hash. Where that can't be done it is made anew when it is needed next."""
    final = folder / f"vectors-{deletions}-{last_key}.usearch"
    try:
        with whole_file(final) as scratch:
            graph.save(str(scratch))
        seal(final)
    except (OSError, RuntimeError) as e:
        log.warning("%s: the vector graph is not kept (%s); free some space", final, e)
        return
    for old in folder.glob("vectors-*.usearch*"):
        if not old.name.startswith(final.name):
            leftovers.remove(old)


def _gather(batches: Iterator[Vectors], dim: int) -> Vectors:
    keys: list[NDArray[np.int64]] = []
    vectors: list[NDArray[np.float32]] = []
    for k, v in batches:
        keys.append(k)
        vectors.append(v)
    if not keys:
        return np.zeros(0, np.int64), np.zeros((0, dim), np.float32)
    return np.concatenate(keys), np.concatenate(vectors)
