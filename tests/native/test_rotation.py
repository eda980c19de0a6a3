"""The rotation that weights are stored in: orthogonal, undone by its inverse, and no shape of it leaves outliers."""

from __future__ import annotations

import numpy as np
import pytest

from gog_edge.native.rotation import rotate, rotate_back, rotation_block

SHAPES = [(16, 16), (64, 64), (100, 64), (576, 512), (3420, 64), (2048, 2048)]


@pytest.mark.parametrize("columns, block", SHAPES)
def test_lengths_and_products_stay(columns: int, block: int) -> None:
    rng = np.random.default_rng(columns)
    x, w = rng.standard_normal((3, columns)).astype(np.float32), rng.standard_normal((5, columns)).astype(np.float32)
    np.testing.assert_allclose(rotate(x, block) @ rotate(w, block).T, x @ w.T, atol=2e-4 * np.sqrt(columns))
    np.testing.assert_allclose(rotate_back(rotate(x, block), block), x, atol=1e-5)


@pytest.mark.parametrize("columns, block", SHAPES)
def test_neither_one_large_column_nor_a_mean_stands_out(columns: int, block: int) -> None:
    for at in range(0, columns, 37):
        one = np.zeros((1, columns), np.float32)
        one[0, at] = 1
        assert np.abs(rotate(one, block)).max() < 5 / np.sqrt(block)
    assert np.abs(rotate(np.ones((1, columns), np.float32), block)).max() < 5


def test_a_row_is_turned_alike_whatever_rows_are_beside_it() -> None:
    x = np.random.default_rng(0).standard_normal((700, 576)).astype(np.float32)
    whole = rotate(x, 512)
    assert np.array_equal(whole, np.concatenate([rotate(x[:1], 512), rotate(x[1:333], 512), rotate(x[333:], 512)]))
    assert np.array_equal(rotate(x, 0), x)


def test_the_block_is_the_largest_power_of_two_that_fits() -> None:
    assert [rotation_block(n, 64) for n in (8, 16, 63, 64, 576)] == [0, 16, 32, 64, 64]
    assert rotation_block(576, 4096) == 512 and rotation_block(576, 0) == 0
