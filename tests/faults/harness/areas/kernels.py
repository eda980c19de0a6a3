"""Compiled kernels in the cache and their hashes, damaged; each is loaded by a process that starts now."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from gog_edge.disk import leftovers
from gog_edge.native import build
from gog_edge.native.toolchain import find_toolchain
from tests.faults.harness.core import Area, Attempt, Unavailable, Wrong
from tests.faults.harness.mutate import damaged
from tests.faults.harness.preload import in_fork

_SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    if find_toolchain() is None or not hasattr(os, "fork"):
        raise Unavailable("needs a C++ compiler and fork")
    os.environ["GOG_EDGE_CACHE"] = str(folder / "cache")
    source, cache = folder / "answer.cpp", folder / "cache" / "native"
    source.write_text(_SOURCE)

    def load() -> None:
        leftovers._swept.clear()
        status = build.load_status("answer", [source])
        if status.library is None:
            raise Wrong(f"not loaded: {status.reason}")
        if int(status.library.function("answer", ctypes.c_int)()) != 42:
            raise Wrong("another answer")

    in_fork(load)
    good = {path.name: path.read_bytes() for path in cache.iterdir()}

    def attempt(rng: Random, number: int) -> str:
        name = rng.choice(sorted(good))
        kind, bad = damaged(good[name], rng)
        for own, data in good.items():
            path = cache / own
            path.unlink(missing_ok=True)
            path.write_bytes(bad if own == name else data)
        try:
            in_fork(load)
        except Wrong as e:
            raise Wrong(f"{name}, {kind}: {e}") from e
        for path in set(cache.iterdir()) - {cache / own for own in good}:
            raise Wrong(f"{name}, {kind}: left behind {path.name}")
        return "compiled anew" if name.endswith(".so") else "answered"

    yield attempt


AREA = Area("kernels", "the right answer; what is damaged is compiled anew", _open, share=0.5)
