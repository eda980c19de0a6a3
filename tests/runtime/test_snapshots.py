"""Which copies of a recurrent state are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gog_edge.errors import EngineError
from gog_edge.runtime.snapshots import EVERY, FEWEST, MEMORY, MOST, Snapshots, copies
from gog_edge.shapes import SHAPES
from tests.runtime.fakes import FakeCache


class Cache(FakeCache):
    """A state that is the number of tokens."""

    seen = 0

    @property
    def floor(self) -> int:
        return self.seen

    def state(self) -> list[Any]:
        return [np.full(MEMORY // FEWEST // 4, self.seen, np.float32)]

    def set_state(self, seen: int, arrays: list[Any]) -> None:
        assert (arrays[0] == seen).all()
        self.seen = seen


def test_how_many_fit() -> None:
    assert copies(0) == 0
    assert copies(1) == MOST
    assert copies(MEMORY) == FEWEST
    assert [copies(SHAPES[f"qwen3.5-{size}"].state_bytes) for size in ("0.8b", "4b", "27b")] == [13, 5, 3]


def test_copies_are_made_where_they_are_wanted_and_now_and_then() -> None:
    cache, snapshots = Cache(), Snapshots(True)
    snapshots.want(10, 900)
    assert snapshots.run_end(0, 64, 100) == 10
    assert snapshots.run_end(10, 64, 100) == 64
    assert snapshots.run_end(0, 64, 9) == 64  # the last rows stay together
    for at in (5, 10, 11, EVERY - 1, EVERY + 9, EVERY + 10):
        cache.seen = at
        snapshots.ran(cache, at, None, False)
    cache.seen = 2000
    assert [snapshots.place(cache, upto) for upto in (9, 10, 521, 522, 1999, 2000)] == [0, 10, 10, 522, 522, 2000]
    assert snapshots.begin(cache, 600) == 522 == cache.seen
    snapshots.cut(100)
    cache.seen = 2000
    assert snapshots.place(cache, 600) == 10


def test_when_there_are_too_many_the_closest_goes_and_the_newest_stays() -> None:
    cache, snapshots = Cache(), Snapshots(True)
    for at in (100, 110, 300, 301):
        cache.seen = at
        snapshots.ran(cache, at, np.zeros(3, np.float32), True)
    cache.seen = 1000
    assert [snapshots.place(cache, upto) for upto in (299, 300, 301)] == [100, 300, 301]
    assert snapshots.rows(301) is not None and snapshots.rows(110) is None


def test_without_recurrent_layers_nothing_is_kept() -> None:
    snapshots = Snapshots(False)
    snapshots.want(3)
    snapshots.ran(FakeCache(), 3, None, True)
    assert snapshots.run_end(0, 9, 9) == 9 and snapshots.begin(FakeCache(), 7) == 7 and snapshots.rows(3) is None


def test_an_engine_without_a_state_is_refused() -> None:
    with pytest.raises(EngineError, match="keeps no recurrent state"):
        Snapshots(True).begin(FakeCache(), 3)
