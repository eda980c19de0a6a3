"""The coarse head: the same winner as all rows, whatever the weights and the state; few rows where scores are apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.cheaper_head import BITS, CoarseHead, Head, measure, turned


def _head(rng: np.random.Generator, rows: int, depth: int, spread: float) -> Head:
    weight = rng.normal(size=(rows, depth)) * rng.uniform(1 - spread, 1 + spread, (rows, 1))
    return Head.rounded(weight.astype(np.float32))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 80),
    st.sampled_from(BITS),
    st.sampled_from([1, 7, 16, 64]),
    st.floats(0, 0.9),
    st.booleans(),
)
def test_the_winner_is_that_of_all_rows(
    seed: int, rows: int, depth: int, bits: int, block: int, spread: float, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    head = _head(rng, rows, depth, spread)
    if rows > 3:  # equal rows: the first one wins
        head.q[rows // 2], head.scales[rows // 2] = head.q[0], head.scales[0]
    x = rng.integers(-127, 128, depth).astype(np.int8)
    allowed = rng.random(rows) < 0.5 if masked else np.ones(rows, np.bool_)
    allowed[rng.integers(rows)] = True
    scores = np.where(allowed, head.scores(x), -np.inf)
    best, count = CoarseHead(head, bits, block).best(x, allowed if masked else None)
    assert best == int(scores.argmax())
    assert 1 <= count <= int(allowed.sum())


@pytest.mark.parametrize("extreme", [-127, 127])
def test_the_ends_of_the_range_are_split_without_loss(extreme: int) -> None:
    head = Head(np.array([[extreme, -128 if extreme < 0 else 126], [0, 1]], np.int8), np.ones(2, np.float32))
    for bits in BITS:
        for x in ([1, 1], [-1, -1], [1, -1], [127, 3]):
            state = np.array(x, np.int8)
            assert CoarseHead(head, bits, 2).best(state)[0] == int(head.scores(state).argmax())


def test_more_bits_leave_fewer_rows() -> None:
    rng = np.random.default_rng(0)
    head = _head(rng, 4000, 128, 0.2)
    x = head.q[7]  # one row stands out
    left = [CoarseHead(head, bits, 64).best(x)[1] for bits in BITS]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 10
    rows = measure(head, x[None])
    assert all(row.equal for row in rows)
    assert rows[-1].bytes == pytest.approx(75, abs=5)


def test_turning_changes_no_product() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, 128)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(turned(a) @ turned(b).T, a @ b.T, atol=1e-4)
