"""kill -9 at every call that changes a file: exports, index builds, sessions, caches, compiles.

Each trial is one work and one call of it; after the death, a process that starts now finds the old state or the new
one, and when it has done the work again nothing is left behind.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from gog_edge import library
from gog_edge.bundle import Bundle
from gog_edge.disk import leftovers
from gog_edge.disk.tensorfile import read_tensors, write_tensors
from gog_edge.engines.base import Features
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.native import build
from gog_edge.runtime.feature_cache import DiskFeatures, FeatureKey
from gog_edge.runtime.prefix_cache import PrefixCache
from gog_edge.search.cache import ResultCache
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from tests.faults.harness import preload
from tests.faults.harness.core import Area, Attempt, Exhausted, Wrong
from tests.search.fakes import record


@dataclass(frozen=True)
class Work:
    """`old` makes the state before, `new` is killed, `check` looks at what is there (raises Wrong); `kept`: all names
    in the folder that may be there when the work was done again after a death."""

    name: str
    old: Callable[[], object]
    new: Callable[[], object]
    check: Callable[[], object]
    kept: tuple[str, ...]


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    preload.ensure(folder)
    os.environ["GOG_EDGE_LIBRARY"] = str(folder / "library")
    os.environ["GOG_EDGE_CACHE"] = str(folder / "cache")
    works = _works(folder)
    counts = {}
    for work in works:
        (folder / work.name).mkdir(exist_ok=True)
        preload.in_fork(work.old)
        counts[work.name] = preload.steps(work.new, folder / work.name)
    calls = [(w, step, torn) for w in works for step in range(counts[w.name]) for torn in (False, True)]
    Random(seed).shuffle(calls)

    def attempt(rng: Random, number: int) -> str:
        if number >= len(calls):
            raise Exhausted
        work, step, torn = calls[number]
        place = folder / work.name
        preload.in_fork(work.old)
        died = preload.killed(work.new, place, step, torn=torn)
        try:
            preload.in_fork(work.check)
            preload.in_fork(work.new)
            preload.in_fork(work.check)
            left = sorted(p.name for p in place.rglob("*") if p.name.startswith(".") or p.name.endswith(".partial"))
            extra = sorted({p.name for p in place.iterdir()} - set(work.kept)) if work.kept else []
            if left or extra:
                raise Wrong(f"left behind: {', '.join(left or extra)[:200]}")
        except Wrong as e:
            raise Wrong(f"{work.name}, killed {'in' if torn else 'before'} call {step}: {e}") from e
        return f"{work.name}" if died else "lived"

    yield attempt


def _works(folder: Path) -> list[Work]:
    return [_export(folder), _index(folder, force=True), _index(folder, force=False), _session(folder),
            _caches(folder), _results(folder), _kernels(folder), _remove(folder)]  # fmt: skip


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


def _export(folder: Path) -> Work:
    checkpoints = {
        s: make_checkpoint("tiny-qwen3-vl", folder / f"checkpoint{s}", dtype="float32", seed=s) for s in (1, 2)
    }
    place = folder / "export" / "b"

    def put(which: int) -> None:
        export_bundle(checkpoints[which], place, ExportOptions(precision="fp32", backend="ort"))

    def check() -> None:
        bundle = Bundle.open(place)
        list(bundle.verify())

    return Work("export", lambda: put(1), lambda: put(2), check, ("b",))


def _index(folder: Path, *, force: bool) -> Work:
    from gog_edge.cli.main import run

    name = "index-force" if force else "index-add"
    place, files = folder / name / "i", {}
    for key, titles in {"old": ("heron",), "new": ("stork", "crane")}.items():
        files[key] = folder / f"{name}-{key}.jsonl"
        files[key].write_text("".join(f'{{"id": "{t}", "title": "{t}"}}\n' for t in titles))

    def command(*arguments: str) -> None:
        _expect(run(["index", *arguments]) == 0, f"index {arguments} failed")

    def old() -> None:
        command("build", str(place), str(files["old"]), "--force")

    def new() -> None:
        if force:
            command("build", str(place), str(files["new"]), "--force")
        else:
            with LocalIndex(place, writable=True) as index:
                add_records(index, [record("stork", "stork"), record("crane", "crane")])

    def check() -> None:
        with LocalIndex(place) as opened:
            titles = sorted(e.title for e in opened.entities())
            found = [hit.title for hit in opened.search("heron stork", k=5)]
        wanted = (["crane", "stork"],) if force else (["crane", "heron", "stork"],)
        _expect(titles in (["heron"], *wanted), f"entries {titles}")
        _expect(bool(found), "nothing is found")

    return Work(name, old, new, check, ("i",))


def _session(folder: Path) -> Work:
    path = folder / "session" / "s.gogs"

    def put(value: float) -> None:
        write_tensors(path, {"kind": "x"}, {str(i): np.full(30_000, value, np.float32) for i in range(3)})

    def check() -> None:
        values = {v for a in read_tensors(path)[1].values() for v in np.unique(a).tolist()}
        _expect(values in ({0.0}, {1.0}), f"values {values}")

    return Work("session", lambda: put(0.0), lambda: put(1.0), check, ("s.gogs",))


def _caches(folder: Path) -> Work:
    place = folder / "caches"
    ids, key = np.arange(40, dtype=np.int32), FeatureKey("d", (0, 0, 4, 4), (2, 2))
    rows = np.ones((2, 40, 64), np.float32)

    def stores() -> tuple[PrefixCache, DiskFeatures]:
        return PrefixCache(place / "prefixes", "f"), DiskFeatures(place / "features", "f", 1 << 20)

    def old() -> None:
        for path in place.rglob("*.gogt"):
            path.unlink()

    def new() -> None:
        prefixes, features = stores()
        prefixes.save(ids, [rows])
        features.save(key, Features(rows[0], None))

    def check() -> None:
        prefixes, features = stores()
        kept, found = prefixes.load(ids), features.load(key)
        _expect(kept is None or np.array_equal(kept[0], rows), "another prefix")
        _expect(found is None or np.array_equal(found.main, rows[0]), "other features")

    return Work("caches", old, new, check, ("prefixes", "features"))


def _results(folder: Path) -> Work:
    path = folder / "results" / "r.db"

    def put(value: str) -> None:
        cache = ResultCache(path, 1000.0)
        cache.put("key", value)
        cache.close()

    def check() -> None:
        cache = ResultCache(path, 1000.0)
        found = cache.get("key")
        cache.put("other", "x")
        _expect(found in (None, "old", "new") and cache.get("other") == "x", f"the result is {found!r}")
        cache.close()

    return Work("results", lambda: put("old"), lambda: put("new"), check, ())


def _kernels(folder: Path) -> Work:
    source, place = folder / "answer.cpp", folder / "kernels"
    source.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n')

    def load() -> None:
        os.environ["GOG_EDGE_CACHE"] = str(place)
        leftovers._swept.clear()
        status = build.load_status("answer", [source])
        _expect(status.library is not None, str(status.reason))
        assert status.library is not None
        _expect(int(status.library.function("answer", ctypes.c_int)()) == 42, "another answer")

    def old() -> None:
        for path in (place / "native").glob("*"):
            path.unlink()

    return Work("kernels", old, load, load, ("native",))


def _remove(folder: Path) -> Work:
    place = folder / "remove"

    def put() -> None:
        export_bundle(folder / "checkpoint1", place / "b", ExportOptions(precision="fp32", backend="ort"))

    def remove() -> None:
        os.environ[library.VARIABLE] = str(place)
        if library.names():
            library.remove("b")
        else:
            leftovers.sweep(place)

    def check() -> None:
        os.environ[library.VARIABLE] = str(place)
        if library.names():
            list(Bundle.open(place / "b").verify())

    return Work("remove", put, remove, check, ("b",))


AREA = Area("kills", "the old state or the new one, and nothing left behind after the next start", _open, share=2.5)
