"""M-RoPE positions: against transformers' rule, and exact under truncation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import SessionError
from gog_edge.manifest import SpecialTokens
from gog_edge.runtime.sequence import TokenSequence, read_rows
from tests.families.sequence import sequence_positions

PARTS = st.lists(st.integers(1, 40) | st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12)


SPECIAL = SpecialTokens(image_pad=1, vision_start=2, vision_end=3, eos=(4,), pad=4)


def build(parts: list[int | tuple[int, int]]) -> TokenSequence:
    sequence = TokenSequence(SPECIAL)
    for i, part in enumerate(parts):
        if isinstance(part, int):
            sequence.append_ids([0] * part)
        else:
            sequence.append_image(part[0], part[1], i)
    return sequence


@settings(max_examples=100, deadline=None)
@given(PARTS)
def test_equal_to_the_layout_rule(parts: list[int | tuple[int, int]]) -> None:
    sequence = build(parts)
    tokens = np.concatenate([np.zeros(p) if isinstance(p, int) else np.ones(p[0] * p[1]) for p in [0, *parts]])
    assert sequence.ids.tolist() == tokens.tolist()
    grids = [(2 * p[0], 2 * p[1]) for p in parts if not isinstance(p, int)]
    expected, following = sequence_positions(tokens.astype(np.int64), 1, grids, 2)
    assert sequence.positions(0, len(sequence)).tolist() == expected.tolist()
    assert sequence.next == following
    assert sequence.delta == following - len(tokens) <= 0


@settings(max_examples=100, deadline=None)
@given(PARTS, st.data())
def test_truncating_is_the_same_as_never_appending(parts: list[int | tuple[int, int]], data: st.DataObject) -> None:
    sequence = build(parts)
    kept = data.draw(st.integers(0, len(parts)))
    shorter = build(parts[:kept])
    sequence.truncate(len(shorter))
    assert sequence.next == shorter.next
    assert sequence.spans == shorter.spans
    assert sequence.positions(0, len(sequence)).tolist() == shorter.positions(0, len(shorter)).tolist()
    sequence.append_ids([0, 0, 0])
    shorter.append_ids([0, 0, 0])
    assert sequence.positions(0, len(sequence)).tolist() == shorter.positions(0, len(shorter)).tolist()


def test_an_image_is_not_cut() -> None:
    sequence = build([4, (2, 3), 2])
    with pytest.raises(SessionError, match="inside image 1"):
        sequence.truncate(6)
    with pytest.raises(SessionError, match="has 12"):
        sequence.truncate(13)
    sequence.truncate(10)  # right behind the image
    assert sequence.next == 7
    sequence.truncate(4)
    assert sequence.next == 4
    assert sequence.spans == []


def test_spans_are_found_by_token() -> None:
    sequence = build([4, (2, 3), (1, 2), 2])
    assert [sequence.span_at(i).image if sequence.span_at(i) else None for i in (3, 4, 9, 10, 11, 12)] == [  # type: ignore[union-attr]
        None, 1, 1, 2, 2, None,
    ]  # fmt: skip
    assert [s.image for s in sequence.spans_between(9, 11)] == [1, 2]


def test_what_is_tried_behind_the_end_is_no_part_of_it() -> None:
    sequence, plain = build([4, (2, 3), 2]), build([4, (2, 3), 2])
    ids, places, written = sequence.ahead(11, [7, 8])
    assert (ids.tolist(), places[0].tolist()) == ([0, 7, 8], [8, 9, 10])
    assert written.tolist() == [False, True, True]  # as what the policy may write
    assert len(sequence) == len(plain) and sequence.ids.tolist() == plain.ids.tolist()
    sequence.append_ids([7])
    assert sequence.ids.tolist() == [*plain.ids.tolist(), 7] and sequence.next == 10
    many = list(range(600))  # more than there was room for
    assert sequence.ahead(len(sequence), many)[0].tolist() == many


def test_every_token_says_whether_the_policy_wrote_it() -> None:
    """However the sequence grows, is tried on and is cut: what lies behind its end leaves no trace."""
    sequence = build([4])
    sequence.append_ids([7] * 3, written=True)
    sequence.ahead(0, [8] * 20)  # flags of a draft, where the image goes next
    sequence.append_image(2, 3, 0)
    sequence.append_ids([9] * 600)  # more than there was room for
    said = [False] * 4 + [True] * 3 + [False] * 606
    assert sequence.written.tolist() == said
    sequence.truncate(6)
    sequence.append_ids([1, 2])
    assert sequence.written.tolist() == [*said[:6], False, False]
    sequence.append_ids([3, 4], written=np.array([True, False]))
    assert sequence.written.tolist()[6:] == [False, False, True, False]


def test_what_can_run_together_ends_before_a_second_stretch_of_given_tokens() -> None:
    for flags, expected in {
        "w": ((0, 0), 1), "www": ((0, 0), 3), "g": ((0, 1), 1), "ggg": ((0, 3), 3), "wgg": ((1, 3), 3),
        "ggw": ((0, 2), 3), "wggw": ((1, 3), 4), "gwg": ((0, 1), 2), "wgwwgw": ((1, 2), 4), "ggwgg": ((0, 2), 3),
    }.items():  # fmt: skip
        assert read_rows(np.array([flag == "w" for flag in flags])) == expected, flags
