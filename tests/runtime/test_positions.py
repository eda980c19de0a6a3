"""M-RoPE positions: against transformers' rule, and exact under truncation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import SessionError
from gog_edge.runtime.positions import Positions
from tests.layout.sequence import sequence_positions

PARTS = st.lists(st.integers(1, 40) | st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12)


def build(parts: list[int | tuple[int, int]]) -> Positions:
    positions = Positions()
    for i, part in enumerate(parts):
        if isinstance(part, int):
            positions.append_text(part)
        else:
            positions.append_image(part[0], part[1], i)
    return positions


@settings(max_examples=100, deadline=None)
@given(PARTS)
def test_equal_to_the_layout_rule(parts: list[int | tuple[int, int]]) -> None:
    positions = build(parts)
    tokens = np.concatenate([np.zeros(p) if isinstance(p, int) else np.ones(p[0] * p[1]) for p in [0, *parts]])
    grids = [(2 * p[0], 2 * p[1]) for p in parts if not isinstance(p, int)]
    expected, following = sequence_positions(tokens.astype(np.int64), 1, grids, 2)
    assert positions.view(0, len(positions)).tolist() == expected.tolist()
    assert positions.next == following
    assert positions.delta == following - len(tokens) <= 0


@settings(max_examples=100, deadline=None)
@given(PARTS, st.data())
def test_truncating_is_the_same_as_never_appending(parts: list[int | tuple[int, int]], data: st.DataObject) -> None:
    positions = build(parts)
    kept = data.draw(st.integers(0, len(parts)))
    shorter = build(parts[:kept])
    positions.truncate(len(shorter))
    assert positions.next == shorter.next
    assert positions.spans == shorter.spans
    assert positions.view(0, len(positions)).tolist() == shorter.view(0, len(shorter)).tolist()
    positions.append_text(3)
    shorter.append_text(3)
    assert positions.view(0, len(positions)).tolist() == shorter.view(0, len(shorter)).tolist()


def test_an_image_is_not_cut() -> None:
    positions = build([4, (2, 3), 2])
    with pytest.raises(SessionError, match="inside image 1"):
        positions.truncate(6)
    with pytest.raises(SessionError, match="has 12"):
        positions.truncate(13)
    positions.truncate(10)  # right behind the image
    assert positions.next == 7
    positions.truncate(4)
    assert positions.next == 4
    assert positions.spans == ()


def test_spans_are_found_by_token() -> None:
    positions = build([4, (2, 3), (1, 2), 2])
    assert [positions.span_at(i).image if positions.span_at(i) else None for i in (3, 4, 9, 10, 11, 12)] == [  # type: ignore[union-attr]
        None, 1, 1, 2, 2, None,
    ]  # fmt: skip
    assert [s.image for s in positions.spans_between(9, 11)] == [1, 2]
