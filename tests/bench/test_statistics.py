"""Statistics: percentiles against numpy, ratios pair by pair, and a gate that noise does not trip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gog_edge.bench.statistics import Summary, differs, paired_ratio, percentile
from gog_edge.errors import BenchError

positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9)


@given(st.lists(positive, min_size=1, max_size=20), st.floats(0.1, 10))
def test_a_drift_that_hits_both_cancels(values: list[float], factor: float) -> None:
    ratio = paired_ratio([v * factor for v in values], values)
    assert ratio.p50 == pytest.approx(factor)
    assert ratio.spread == pytest.approx(0, abs=1e-6)


def test_unequal_runs_are_refused() -> None:
    with pytest.raises(BenchError, match="can't be paired"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(BenchError, match="finite"):
        Summary("s", ())


def test_a_slowdown_beyond_noise_is_seen_and_noise_is_not() -> None:
    before = Summary("s", (1.0, 1.01, 0.99, 1.0, 1.02))
    assert differs(before, Summary("s", (1.3, 1.31, 1.29, 1.3, 1.3))) == pytest.approx(0.3)
    assert differs(before, Summary("s", (1.02, 1.0, 1.03, 1.01, 1.02))) == 0
    assert differs(before, Summary("s", (0.5,) * 5)) == 0
    noisy = Summary("s", (0.6, 1.5, 1.2, 0.9, 1.6))
    assert differs(before, noisy) == 0


def test_throughput_gets_worse_when_it_falls() -> None:
    before = Summary("tok/s", (100.0, 101.0, 99.0), lower_is_better=False)
    after = Summary("tok/s", (50.0, 51.0, 49.0), lower_is_better=False)
    assert differs(before, after) == pytest.approx(0.5)
    assert differs(after, before) == 0
