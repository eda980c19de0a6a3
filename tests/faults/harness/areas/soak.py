"""Ten thousand questions to one policy: the same answers, and no growth of memory, descriptors or threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil

from tests.faults.harness.core import Area, Attempt, Exhausted, Wrong
from tests.faults.harness.policy import load, own_cache, photo, tiny

QUESTIONS = 10_000
_WARM = 300  # questions after which nothing may grow
_KINDS = 23  # different questions; other pictures than the feature cache holds are among them
_GROWTH_BYTES = 48 << 20
_SPARE = 6  # descriptors and threads that come and go


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    own_cache(folder)
    process = psutil.Process()
    pictures = [photo(i) for i in range(_KINDS)]
    known: dict[int, str] = {}
    base: list[int] = []

    def sample() -> list[int]:
        return [process.memory_info().rss, len(os.listdir("/proc/self/fd")), threading.active_count()]  # noqa: PTH208

    with load(tiny(folder), folder / "policy", feature_cache_bytes=1 << 20) as agent:

        def attempt(rng: Random, number: int) -> str:
            if number >= QUESTIONS:
                raise Exhausted
            kind = rng.randrange(_KINDS)
            answer = agent.ask(pictures[kind], f"question {kind}?")
            said = f"{answer.text!r} {[step.turn.raw for step in answer.steps]}"
            if known.setdefault(kind, said) != said:
                raise Wrong(f"question {kind} was answered {known[kind][:200]}, now {said[:200]}")
            if number % 50 == 0 and number >= _WARM:
                now = sample()
                base[:] = base or now
                grown = [b - a for a, b in zip(base, now)]
                if grown[0] > _GROWTH_BYTES or max(grown[1:]) > _SPARE:
                    raise Wrong(f"after {number}: {grown[0] >> 20} MiB, {grown[1]} files, {grown[2]} threads more")
            return "answered as before"

        yield attempt


AREA = Area("soak", f"the same answers; memory, descriptors and threads stay (at most {QUESTIONS} questions)", _open)
