"""The local index as it grows: insertions per second, building the vector structure, ms per search."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gog_edge.bench.result import Cell
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.record import Record
from gog_edge.search.local.store import StoredImage

SIZES = (1_000, 10_000, 100_000)
DIM = 512
BATCH = 1_000
SEARCHES = 50
RESULTS = 5
_WORDS = ("heron", "crane", "bridge", "tower", "valve", "engine", "market", "harbour", "temple", "orchid", "river")


def index_cells(repeats: int, sizes: Sequence[int] = SIZES, dim: int = DIM) -> Iterator[Cell]:
    """One index that grows from size to size; entries have a title, two sentences and one vector (`dim`, float16)."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="gog-edge-bench-") as folder, LocalIndex(folder, create=True) as index:
        filled = 0
        for size in sizes:
            rates = []
            while filled < size:
                count = min(BATCH, size - filled)
                seconds = _insert(index, filled, _unit(rng, count, dim))
                rates.append(count / seconds)
                filled += count
            yield Cell("index", "gog-edge", "insert rate", "1/s", tuple(rates), lower_is_better=False, x=size)
            start = time.perf_counter()
            index.prepare()
            yield Cell("index", "gog-edge", "make the vector structure", "s", (time.perf_counter() - start,), x=size)
            yield from _searches(index, rng, size, dim, max(SEARCHES, repeats))
            stored = sum(f.stat().st_size for f in Path(folder).iterdir() if f.is_file())
            yield Cell("index", "gog-edge", "on disk", "B", (float(stored),), x=size)


def _searches(index: LocalIndex, rng: np.random.Generator, size: int, dim: int, count: int) -> Iterator[Cell]:
    vectors = _unit(rng, count + 1, dim)
    texts = [f"{_WORDS[n % len(_WORDS)]} {_WORDS[(n * 7 + 3) % len(_WORDS)]} {n % size}" for n in range(count + 1)]
    for stage, by_text, by_vector in (
        ("search with a picture", False, True),
        ("search with text", True, False),
        ("search with both", True, True),
    ):
        samples = []
        for n in range(count + 1):
            start = time.perf_counter()
            index.search(texts[n] if by_text else "", vectors[n] if by_vector else None, k=RESULTS)
            samples.append(time.perf_counter() - start)
        # the first one opens what is opened lazily
        yield Cell("index", "gog-edge", stage, "s", tuple(samples[1:]), x=size)


def _insert(index: LocalIndex, first: int, vectors: NDArray[np.float32]) -> float:
    """Seconds to put a batch of entries, in one transaction as an ingest does."""
    entries = []
    for offset, vector in enumerate(vectors):
        n = first + offset
        title = f"{_WORDS[n % len(_WORDS)]} {n}"
        text = f"Entry {n} is about a {title}. It stands beside the {_WORDS[(n * 5 + 1) % len(_WORDS)]} of {n // 7}."
        digest = hashlib.sha256(title.encode()).digest()
        image = StoredImage(f"{n}.jpg", digest, vector)
        entries.append((Record(f"entry/{n}", title, text, f"local:{n}", (f"{n}.jpg",)), [image]))
    start = time.perf_counter()
    with index.database.transaction() as c:
        index.store.claim_encoder(c, "bench", vectors.shape[1])
        for record, images in entries:
            index.store.put(c, record, images)
        index.store.touch(c)
    return time.perf_counter() - start


def _unit(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """Random directions [count, dim], float32."""
    vectors = rng.standard_normal((count, dim), np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
