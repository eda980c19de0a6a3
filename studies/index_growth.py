"""How an index grows: insert rate, size and search latency from 1,000 entries to 1,000,000, with synthetic entries.

    python -m studies.index_growth --sizes 1000,10000,100000 --dim 256 --folder /tmp/growth

Titles and texts are drawn from a Zipf-distributed vocabulary, vectors from clusters on the sphere. Searches: the
vector of an entry with noise added (recall is against that entry), and three words of an entry's text, one of them
common. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.record import Record
from gog_edge.search.local.store import StoredImage

BATCH = 1000  # sizes are multiples of it, so that entries depend on their number alone
CLUSTERS = 2000
NOISE = 0.35  # norm of the noise beside a unit vector: cosine of about 0.94 to the entry searched for
VOCABULARY = 60_000


class Synthetic:
    """Entries by number: the same for every size, so that a bigger index holds the smaller one."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.dim, self._seed = dim, seed
        self._centres = _unit(rng.standard_normal((CLUSTERS, dim)).astype(np.float32))
        letters = np.array(list("abcdefghiklmnoprstuvwz"))
        lengths = rng.integers(4, 10, VOCABULARY)
        self._words = ["".join(rng.choice(letters, n)) for n in lengths]

    def batch(self, start: int, count: int) -> tuple[list[Record], NDArray[np.float32]]:
        """Records and their unit vectors [count, dim]."""
        rng = np.random.default_rng([self._seed, start])
        # Zipf: the word of rank r is drawn with a probability of about 1 / r.
        ranks = np.exp(rng.uniform(0, np.log(VOCABULARY), (count, 16))).astype(np.int64) - 1
        records = []
        for row, words in enumerate(ranks):
            said = [self._words[w] for w in words]
            number = start + row
            records.append(Record(f"e{number}", " ".join([*said[:3], str(number)]), " ".join(said[3:]), "synthetic"))
        centres = self._centres[rng.integers(0, CLUSTERS, count)]
        spread = _unit(rng.standard_normal((count, self.dim)).astype(np.float32))
        return records, _unit(centres + spread)


def measure(folder: Path, sizes: list[int], dim: int, searches: int) -> Iterator[dict[str, Any]]:
    """Grow one index through `sizes`; yields the figures of each."""
    source = Synthetic(dim)
    with LocalIndex(folder, create=True) as index:
        filled = 0
        for size in sizes:
            inserting = time.perf_counter()
            for start in range(filled, size, BATCH):
                _insert(index, *source.batch(start, min(BATCH, size - start)))
            inserting = time.perf_counter() - inserting
            preparing = time.perf_counter()
            index.prepare()
            preparing = time.perf_counter() - preparing
            yield {
                "entries": size,
                "insert_per_s": round((size - filled) / inserting),
                "prepare_s": round(preparing, 2),
                "vectors": index.vector_search,
                "bytes_per_entry": round(sum(f.stat().st_size for f in folder.iterdir()) / size),
                **_searches(index, source, size, searches),
                "peak_mib": _peak_mib(),
            }
            filled = size


def search_again(folder: Path, dim: int, searches: int) -> Iterator[dict[str, Any]]:
    """The figures of an index that was made before, without those of making it."""
    with LocalIndex(folder) as index:
        size = index.store.counts()["entries"]
        opening = time.perf_counter()
        index.prepare()
        opening = time.perf_counter() - opening
        figures = {"entries": size, "prepare_s": round(opening, 2), "vectors": index.vector_search}
        yield figures | _searches(index, Synthetic(dim), size, searches) | {"peak_mib": _peak_mib()}


def _insert(index: LocalIndex, records: list[Record], vectors: NDArray[np.float32]) -> None:
    with index.database.transaction() as c:
        index.store.claim_encoder(c, "synthetic", vectors.shape[1])
        for record, vector in zip(records, vectors):
            digest = record.id.encode().ljust(32, b"\0")
            index.store.put(c, record, [StoredImage(f"{record.id}.jpg", digest, vector)])
        index.store.touch(c)


def _searches(index: LocalIndex, source: Synthetic, size: int, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    vector_ms: list[float] = []
    text_ms: list[float] = []
    found = found_text = 0
    for _ in range(count):
        batch = int(rng.integers(0, max(1, size // BATCH))) * BATCH
        records, vectors = source.batch(batch, min(BATCH, size - batch))
        row = int(rng.integers(len(records)))
        noise = _unit(rng.standard_normal((1, source.dim)).astype(np.float32))[0] * NOISE
        query = _unit((vectors[row] + noise)[None])[0]
        began = time.perf_counter()
        hits = index.search(vector=query, k=5)
        vector_ms.append((time.perf_counter() - began) * 1e3)
        found += any(h.entity == records[row].id for h in hits[:1])
        words = [*records[row].title.split()[:2], records[row].text.split()[0]]
        began = time.perf_counter()
        hits = index.search(" ".join(words), k=5, cut="none")
        text_ms.append((time.perf_counter() - began) * 1e3)
        found_text += any(h.entity == records[row].id for h in hits)
    return {
        "image_ms_p50": round(statistics.median(vector_ms), 2),
        "image_ms_p95": round(sorted(vector_ms)[int(0.95 * (count - 1))], 2),
        "image_recall@1": round(found / count, 3),
        "text_ms_p50": round(statistics.median(text_ms), 2),
        "text_ms_p95": round(sorted(text_ms)[int(0.95 * (count - 1))], 2),
        "text_recall@5": round(found_text / count, 3),
    }


def _peak_mib() -> int:
    """Most memory that this process has held so far, MiB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / norms
    return unit


@click.command()
@click.option("--sizes", default="1000,10000,100000", show_default=True, help="Entries, growing, with commas between.")
@click.option("--dim", default=256, show_default=True, help="Length of the vectors.")
@click.option("--searches", default=100, show_default=True, help="Of each kind, at each size.")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="Where the index is made; replaced.")
@click.option("--keep", is_flag=True, help="Leave the index there.")
@click.option("--reuse", is_flag=True, help="Only search, in an index that --keep left there.")
def command(sizes: str, dim: int, searches: int, folder: Path, keep: bool, reuse: bool) -> None:
    """Measure how an index grows."""
    wanted = [int(s) for s in sizes.split(",")]
    if any(s < BATCH or s % BATCH for s in wanted) or wanted != sorted(set(wanted)):
        raise click.BadParameter(f"growing multiples of {BATCH} are needed", param_hint="--sizes")
    rows: list[dict[str, Any]] = []
    try:
        if not reuse:
            shutil.rmtree(folder, ignore_errors=True)
        for row in search_again(folder, dim, searches) if reuse else measure(folder, wanted, dim, searches):
            if not rows:
                click.echo("  ".join(f"{name:>15}" for name in row))
            click.echo("  ".join(f"{value!s:>15}" for value in row.values()))
            rows.append(row)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    click.echo(json.dumps({"dim": dim, "searches": searches, "rows": rows}))


if __name__ == "__main__":
    command()
