"""VisionAttention against numpy: f32 to rounding, bf16 to what rounding q, k, v and p to 8 bits costs.

bf16 has a relative step of 2^-8 (half of it when rounded): the output, a mean of rows of v, is off by about
2^-9 of |v| for v and p each, and by |score error| for the scores, which for unit-variance inputs is
sqrt(hd) * 2^-9 * |q||k| / sqrt(hd) ~ 2^-8: together below 2 % of the largest |v|.  int8 rounds to 1/254 of a
row's or channel's peak: below 3 %.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native import reference
from tests.native.graphs import needs_ops, run

pytestmark = needs_ops
F32 = np.float32
TOLERANCE = {1: 2e-6, 0: 2e-2, 2: 3e-2}


def _inputs(n: int, heads: int, hd: int, seed: int = 0) -> dict[str, NDArray[np.generic] | None]:
    rng = np.random.default_rng(seed)
    angle = rng.random((n, hd // 2)) * 6
    return {
        "qkv": rng.standard_normal((n, 3 * heads * hd)).astype(F32),
        "cos": np.cos(angle).astype(F32),
        "sin": np.sin(angle).astype(F32),
        "gather": None,
        "mask": None,
    }


def _check(inputs: dict[str, NDArray[np.generic] | None], heads: int, precision: int, **attributes: float) -> None:
    got = run("VisionAttention", inputs, heads=heads, precision=precision, **attributes)
    want = reference.vision_attention(
        inputs["qkv"],  # type: ignore[arg-type]
        inputs["cos"],  # type: ignore[arg-type]
        inputs["sin"],  # type: ignore[arg-type]
        heads,
        inputs["gather"],  # type: ignore[arg-type]
        inputs["mask"],  # type: ignore[arg-type]
        scale=attributes.get("scale"),
    )
    assert got.shape == want.shape
    error = np.abs(got - want).max() / np.abs(np.asarray(inputs["qkv"])).max()
    assert error < TOLERANCE[precision], f"error {error:.2e}"


@pytest.mark.parametrize("precision", [0, 1, 2])
@pytest.mark.parametrize("hd", [8, 16, 32, 64, 72, 80, 96, 128])
def test_head_sizes(hd: int, precision: int) -> None:
    _check(_inputs(50, 2, hd), 2, precision)


@pytest.mark.parametrize("precision", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 15, 16, 17, 23, 24, 25, 31, 32, 33, 127, 128, 129, 200, 261, 400])
def test_lengths(n: int, precision: int) -> None:
    _check(_inputs(n, 1, 64, n), 1, precision)


@pytest.mark.parametrize("precision", [0, 1, 2])
def test_windows_of_unequal_length(precision: int) -> None:
    rng = np.random.default_rng(1)
    lengths = [64, 64, 17, 1, 40, 64, 8]
    n, longest = sum(lengths), max(lengths)
    inputs = _inputs(n, 3, 80)
    order = rng.permutation(n)
    gather = np.zeros((len(lengths), longest), np.int64)
    mask = np.zeros((len(lengths), longest), np.int32)
    start = 0
    for w, length in enumerate(lengths):
        gather[w, :length] = order[start : start + length]
        mask[w, :length] = 1
        start += length
    inputs["gather"], inputs["mask"] = gather, mask
    _check(inputs, 3, precision)


def test_int8_withstands_offsets_and_a_dominant_key() -> None:
    """A bias on keys and values and one far larger score: what smoothing and block-wise probabilities are for."""
    inputs = _inputs(700, 2, 64)
    qkv = np.asarray(inputs["qkv"])
    inputs["cos"], inputs["sin"] = np.ones((700, 32), F32), np.zeros((700, 32), F32)
    qkv[:, 128:256] += 15
    qkv[:, 256:] += 4
    qkv[5, 128:192] += 0.9 * qkv[:, :64].mean(axis=0) * 64
    want = reference.vision_attention(qkv, inputs["cos"], inputs["sin"], 2)  # type: ignore[arg-type]
    got = run("VisionAttention", inputs, heads=2, precision=2)
    # v has unit variance: the typical error is below 1 % of it, the worst (a query on the dominant key) 15 %.
    assert np.sqrt(((got - want) ** 2).mean()) < 0.01
    assert np.abs(got - want).max() < 0.15


@pytest.mark.parametrize("precision", [0, 1, 2])
def test_large_scores_and_given_scale(precision: int) -> None:
    inputs = _inputs(150, 2, 32)
    qkv = np.asarray(inputs["qkv"])
    qkv[:, :128] *= 20  # scores in the hundreds: softmax must not overflow, and becomes almost one-hot
    got = run("VisionAttention", inputs, heads=2, precision=1, scale=0.25)
    assert np.isfinite(got).all()
    if precision == 1:
        want = reference.vision_attention(qkv, inputs["cos"], inputs["sin"], 2, scale=0.25)  # type: ignore[arg-type]
        assert np.abs(got - want).max() < 1e-3


def test_a_row_named_twice_or_never_is_refused() -> None:
    inputs = _inputs(4, 1, 16)
    inputs["gather"] = np.array([[0, 1], [1, 3]], np.int64)
    inputs["mask"] = np.ones((2, 2), np.int32)
    with pytest.raises(Exception, match="every row once"):
        run("VisionAttention", inputs, heads=1)
    inputs["gather"] = np.array([[0, 1], [2, 9]], np.int64)
    with pytest.raises(Exception, match="every row once"):
        run("VisionAttention", inputs, heads=1)
    inputs["gather"], inputs["mask"] = np.array([[0, 1]], np.int64), np.ones((1, 2), np.int32)
    with pytest.raises(Exception, match="every row once"):
        run("VisionAttention", inputs, heads=1)
    with pytest.raises(Exception, match="heads is missing"):
        run("VisionAttention", _inputs(4, 1, 16))
