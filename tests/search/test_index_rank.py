"""Rank fusion and the dynamic number of results."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.search.local.rank import Scored, dynamic_count, fuse, ordered

scores = st.lists(st.floats(-1, 100, allow_nan=False), min_size=1, max_size=40).map(lambda s: sorted(s, reverse=True))


@settings(deadline=None)
@given(scores, st.integers(1, 20), st.floats(0, 1))
def test_count_is_between_one_and_k(values: list[float], k: int, keep: float) -> None:
    assert 1 <= dynamic_count(values, k, keep=keep, floor=0.0) <= min(k, len(values))


@settings(deadline=None)
@given(scores, st.integers(1, 20))
def test_a_stricter_rule_never_keeps_more(values: list[float], k: int) -> None:
    counts = [dynamic_count(values, k, keep=keep) for keep in (0.0, 0.3, 0.6, 1.0)]
    assert counts == sorted(counts, reverse=True)


def test_one_clear_winner_and_a_plateau() -> None:
    background = [0.2] * 20
    assert dynamic_count([0.9, 0.3, 0.25, *background], 5, keep=0.5) == 1
    assert dynamic_count([0.9, 0.88, 0.87, *background], 3, keep=0.5) == 3
    assert dynamic_count([], 5, keep=0.5) == 0


def test_fusion_prefers_agreement_and_is_deterministic() -> None:
    a = [Scored(1, 9.0), Scored(2, 8.0), Scored(3, 7.0)]
    b = [Scored(2, 0.9), Scored(4, 0.8)]
    fused = fuse([(a, 1.0), (b, 1.0)])
    assert [s.entity for s in fused] == [2, 1, 4, 3]
    assert fused[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert ordered([Scored(5, 1.0), Scored(2, 1.0 + 1e-12)]) == [Scored(2, 1.0 + 1e-12), Scored(5, 1.0)]
