"""Rank fusion and the dynamic number of results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.search.local import rank
from gog_edge.search.local.rank import Scored, chosen, dynamic_count, fuse, mixture_count, ordered

FITTED = [
    11, 8, 3, 7, 2, 3, 2, 9, 6, 8, 11, 10, 6, 5, 10, 3, 6, 11, 10, 4, 9, 5, 3, 9, 2,
    6, 5, 8, 8, 11, 7, 3, 8, 5, 7, 3, 11, 3, 10, 2, 4, 9, 7, 5, 11, 10, 5, 2, 8, 4,
]  # fmt: skip
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


@settings(deadline=None)
@given(scores, st.integers(1, 20))
def test_a_mixture_gives_five_to_ten_whatever_the_scale(values: list[float], k: int) -> None:
    count = mixture_count(values, k)
    assert min(5, k, len(values)) <= count <= min(10, k, len(values))
    doubled = [2.0 * v for v in values]  # exact in binary: the fit sees the same numbers
    assert mixture_count(doubled, k) == count


@pytest.mark.parametrize("near", range(5, 11))
def test_a_mixture_finds_the_results_that_stand_apart(near: int) -> None:
    rng = np.random.default_rng(near)
    for _ in range(20):
        apart = sorted([*rng.normal(0.8, 0.02, near), *rng.normal(0.3, 0.05, 30)], reverse=True)
        assert mixture_count(apart, 20) == near
    assert mixture_count([0.5] * 30, 20) == 10 and mixture_count([0.9, 0.1], 20) == 2 and mixture_count([], 5) == 0


def test_a_mixture_is_fitted_as_scikit_learn_fits_it() -> None:
    """How many of twenty scores are in the upper component, in fifty draws. `FITTED` is what GaussianMixture of
    scikit-learn 1.9.1 gives for scores scaled to 0 … 1, from means 0 and 1, weights 0.5 and precisions 16."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(50):
        near = int(rng.integers(2, 12))
        values = [*rng.normal(0.7, 0.06, near), *rng.normal(0.4, 0.06, 20 - near)]
        found.append(rank._upper(sorted(values, reverse=True)).count(True))
    assert found == FITTED


def test_each_ranking_is_cut_by_itself_and_the_rest_is_fused() -> None:
    text = [Scored(n, 9.0 - 0.01 * n if n < 6 else 1.0 - 0.01 * n) for n in range(20)]
    image = [Scored(100 + n, 0.9 - 0.001 * n if n < 7 else 0.3 - 0.001 * n) for n in range(20)]
    assert chosen(text, None, 20, 80, "mixture") == list(range(6))
    assert sorted(chosen(text, image, 20, 80, "mixture")) == [*range(6), *range(100, 107)]
    assert len(chosen(text, None, 20, 80, "none")) == 20


def test_fusion_prefers_agreement_and_is_deterministic() -> None:
    a = [Scored(1, 9.0), Scored(2, 8.0), Scored(3, 7.0)]
    b = [Scored(2, 0.9), Scored(4, 0.8)]
    fused = fuse([(a, 1.0), (b, 1.0)])
    assert [s.entity for s in fused] == [2, 1, 4, 3]
    assert fused[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert ordered([Scored(5, 1.0), Scored(2, 1.0 + 1e-12)]) == [Scored(2, 1.0 + 1e-12), Scored(5, 1.0)]
