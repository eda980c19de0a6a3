"""The weight table is Pillow's: seen through single-axis resizes of pictures that show each weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gog_edge.crop.taps import PRECISION_BITS, bicubic_taps


def apply(row: np.ndarray, size: int) -> np.ndarray:
    taps = bicubic_taps(row.size, size)
    sums = [
        int(taps.weight[i, : taps.count[i]].astype(np.int64) @ row[taps.start[i] : taps.start[i] + taps.count[i]])
        for i in range(size)
    ]
    return np.clip((np.array(sums) + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255).astype(np.uint8)


@settings(deadline=None)
@given(size_in=st.integers(1, 400), size_out=st.integers(1, 400), seed=st.integers(0, 1 << 16))
def test_one_axis_equals_pillow(size_in: int, size_out: int, seed: int) -> None:
    row = np.random.default_rng(seed).integers(0, 256, size_in, dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(row[None]).resize((size_out, 1), Image.Resampling.BICUBIC))[0]
    assert np.array_equal(apply(row.astype(np.int64), size_out), pillow)


@settings(deadline=None)
@given(size_in=st.integers(1, 5000), size_out=st.integers(1, 2000))
def test_windows_stay_inside_and_move_right(size_in: int, size_out: int) -> None:
    taps = bicubic_taps(size_in, size_out)
    assert taps.start.min() >= 0 and taps.count.min() >= 1
    assert (taps.start + taps.count).max() <= size_in
    assert (np.diff(taps.start) >= 0).all() and (np.diff(taps.start + taps.count) >= 0).all()
    assert np.abs(taps.weight.sum(axis=1) - (1 << PRECISION_BITS)).max() <= taps.stride  # each rounded by up to 1/2
    assert 255 * np.abs(taps.weight.astype(np.int64)).sum(axis=1).max() < 1 << 31  # sums fit 32 bits


@pytest.mark.parametrize("size", [1, 5, 448])
def test_the_same_size_changes_nothing(size: int) -> None:
    row = np.arange(size, dtype=np.int64) % 256
    assert np.array_equal(apply(row, size), row)


def test_tables_are_read_only_and_cached() -> None:
    taps = bicubic_taps(100, 30)
    assert taps is bicubic_taps(100, 30)
    with pytest.raises(ValueError):
        taps.weight[0, 0] = 1
