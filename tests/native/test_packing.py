"""Packed weight layouts: they lose nothing and say what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.native import packing
from tests.native import reference


@settings(max_examples=25, deadline=None)
@given(
    columns=st.integers(1, 70), depth=st.integers(1, 90), block=st.sampled_from([4, 16, 100]), seed=st.integers(0, 99)
)
def test_w8_round_trip(columns: int, depth: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (columns, depth), np.int8)
    scales = rng.random((columns, -(-depth // block)), np.float32)
    packed = packing.pack_w8(q, scales, block=block)
    assert packed.columns % packing.STRIP == 0 and packed.columns >= columns
    back, back_scales = reference.unpack_w8(packed)
    assert np.array_equal(back[:columns, :depth], q)
    assert np.array_equal(back_scales[:columns], scales)
    assert not back[columns:].any() and not back[:, depth:].any()


@settings(max_examples=25, deadline=None)
@given(
    columns=st.integers(1, 70),
    blocks=st.integers(1, 5),
    block=st.sampled_from([32, 64, 128]),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_w4_round_trip(columns: int, blocks: int, block: int, zeros: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = blocks * block
    q = rng.integers(0, 16, (columns, depth), np.uint8)
    scales = rng.random((columns, blocks)).astype(np.float16)
    zero_points = rng.integers(0, 16, (columns, blocks), np.uint8) if zeros else None
    packed = packing.pack_w4(q, scales, zero_points)
    back, back_scales, back_zeros = reference.unpack_w4(packed)
    assert np.array_equal(back[:columns], q)
    assert np.array_equal(back_scales[:columns], scales)
    if zero_points is None:
        assert back_zeros is None
    else:
        assert back_zeros is not None and np.array_equal(back_zeros[:columns], zero_points)


def test_gate_and_up_alternate_by_panels() -> None:
    order = packing.gate_up_order(20)
    assert order[:16].tolist() == list(range(16)) and order[16:32].tolist() == list(range(20, 36))
    assert order[32:36].tolist() == [16, 17, 18, 19] and order[36:48].tolist() == [-1] * 12
    assert order[48:52].tolist() == [36, 37, 38, 39] and len(order) % packing.STRIP == 0
    assert packing.pack_columns(np.arange(40, dtype=np.float32), order)[16:18].tolist() == [20.0, 21.0]


def test_block_size_prefers_powers_of_two() -> None:
    assert packing.block_size(2048, 16) == 128
    assert packing.block_size(100, 2) == 64
    assert packing.block_size(96, 1) == 128
    assert packing.block_size(88, 3) == 32
    with pytest.raises(ValueError, match="no block size"):
        packing.block_size(16, 5)


def test_what_does_not_fit_is_named() -> None:
    ones = np.ones((4, 8), np.int8)
    with pytest.raises(ValueError, match="int8"):
        packing.pack_w8(ones.astype(np.int32), np.ones(4, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-127"):
        packing.pack_w8(np.full((4, 8), -128, np.int8), np.ones(4, np.float32))
    with pytest.raises(ValueError, match="cuts 8 columns into 2"):
        packing.pack_w8(ones, np.ones((4, 2), np.float32), block=8)
    with pytest.raises(ValueError, match="0 … 15"):
        packing.pack_w4(np.full((4, 8), 16, np.uint8), np.ones((4, 1), np.float16))
    with pytest.raises(ValueError, match="zero_points"):
        packing.pack_w4(np.ones((4, 8), np.uint8), np.ones((4, 1), np.float16), np.ones((4, 2), np.uint8))
