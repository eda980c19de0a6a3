"""Bundles: every file of one, damaged as a bad disk or an interrupted copy damages it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np

from gog_edge.bundle import MANIFEST, Bundle
from gog_edge.errors import GogEdgeError
from tests.faults.harness.core import Area, Attempt, Wrong, one_line
from tests.faults.harness.mutate import damaged
from tests.faults.harness.policy import load, own_cache, said, tiny


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    own_cache(folder)
    bundle = tiny(folder)
    cache = folder / "policy"
    with load(bundle, cache) as agent:
        want, text = said(agent), agent.dialect.spec
    names = [MANIFEST, *sorted(Bundle.open(bundle).manifest.files)]
    good = {name: (bundle / name).read_bytes() for name in names}

    def put(name: str, data: bytes) -> None:
        fresh = folder / "fresh"
        fresh.write_bytes(data)
        fresh.replace(bundle / name)

    def attempt(rng: Random, number: int) -> str:
        name = MANIFEST if number % 3 == 0 else names[number // 3 % len(names)]
        kind, bad = damaged(good[name], rng, good[rng.choice(names)])
        put(name, bad)
        try:
            try:
                list(Bundle.open(bundle).verify())
                inspected = ""
            except GogEdgeError as e:
                inspected = one_line(e)
            try:
                agent = load(bundle, cache)
            except GogEdgeError as e:
                return one_line(e)
            with agent:
                same = np.array_equal(said(agent), want) and agent.dialect.spec == text
        finally:
            put(name, good[name])
        if not same:
            raise Wrong(f"{name}, {kind}: another answer without a word")
        if inspected:
            raise Wrong(f"{name}, {kind}: inspect --hashes refuses what load takes")
        return "the same answer"

    yield attempt


AREA = Area("bundles", "one line at load, or the same answer", _open, share=1.5)
