"""Index folders: the database, the vector graph and its hash, damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from gog_edge.disk import leftovers
from gog_edge.errors import GogEdgeError
from gog_edge.search.local import vectors
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from tests.faults.harness.core import Area, Attempt, Wrong, one_line
from tests.faults.harness.mutate import damaged
from tests.faults.harness.policy import own_cache
from tests.search.fakes import FakeEmbedder, FakeFrame, load_fake, record

_COUNT = 80


def build(folder: Path, count: int = _COUNT) -> Path:
    """An index of `count` entries with words, relations, pictures, vectors and their graph."""
    pictures = folder / "pictures"
    pictures.mkdir()
    rows = []
    for i in range(count):
        (pictures / f"{i}.png").write_bytes(b"%d" % i)
        rows.append(
            record(f"e{i}", f"title {i}", f"heron number {i}", pictures / f"{i}.png", near=f"e{(i + 1) % count}")
        )
    with LocalIndex(folder / "i", create=True) as index:
        add_records(index, rows, embedder=FakeEmbedder(), load_frame=load_fake)
        index.prepare()
    return folder / "i"


def seen(folder: Path, *, writable: bool = False) -> list[list[str]]:
    """What searches by words and by pictures find, and the entries."""
    with LocalIndex(folder, writable=writable) as index:
        near = [index.search(vector=FakeEmbedder().embed(FakeFrame(b"%d" % i)), k=2, cut="none") for i in (3, 40)]
        found = [index.search("heron number 7", k=3), index.search("title 12", k=3), *near]
        return [*([hit.entity for hit in hits] for hits in found), [e.title for e in index.entities()]]


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    own_cache(folder)
    vectors.EXACT_LIMIT = 50  # so that 80 vectors have a graph
    index = build(folder)
    for left in index.glob("*-wal"):
        assert not left.stat().st_size
    good = {path.name: path.read_bytes() for path in index.iterdir() if not path.name.endswith(("-wal", "-shm"))}
    want = seen(index)

    def attempt(rng: Random, number: int) -> str:
        name = rng.choice(sorted(good))
        kind, bad = damaged(good[name], rng, good[rng.choice(sorted(good))])
        shutil.rmtree(index)
        index.mkdir()
        for own, data in good.items():
            (index / own).write_bytes(bad if own == name else data)
        leftovers._swept.clear()
        try:
            found = seen(index, writable=number % 3 == 0)
        except GogEdgeError as e:
            if name != "index.db":
                raise Wrong(f"{name}, {kind}: {e}") from e
            return one_line(e)
        if found != want and name != "index.db":
            raise Wrong(f"{name}, {kind}: other results")
        return "the same results" if found == want else "other results, of a damaged database"

    yield attempt


AREA = Area("indexes", "one line or results; a damaged vector graph: the same results", _open)
