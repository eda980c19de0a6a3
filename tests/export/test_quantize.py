"""Round-to-nearest quantisation: error bounds, special blocks, streaming, recipes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme, dequantize
from gog_edge.export.quantize.weights import quantize, quantize_rows
from gog_edge.native.rotation import rotate

INTEGER_SCHEMES = [
    Scheme(4, 32),
    Scheme(4, 32, symmetric=False),
    Scheme(4, 16, scale_dtype="float16"),
    Scheme(4, 32, positive=True),
    Scheme(4, 0),
    Scheme(8),
    Scheme(8, 32),
    Scheme(8, 32, symmetric=False),
    Scheme(8, 32, scale_dtype="float16"),
    Scheme(8, 32, even=True),
]


def _random(seed: int, rows: int, inputs: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((rows, inputs))).astype(np.float32)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES, ids=str)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 100), st.integers(0, 1000), st.sampled_from([1e-4, 1.0, 300.0]))
def test_error_is_within_the_step(scheme: Scheme, rows: int, inputs: int, seed: int, magnitude: float) -> None:
    weight = _random(seed, rows, inputs, magnitude)
    quantized = quantize(weight, scheme)
    assert quantized.q.dtype == np.int8
    assert quantized.q.shape == weight.shape == quantized.shape
    assert quantized.scales is not None
    assert quantized.scales.shape == (rows, scheme.blocks(inputs))
    assert quantized.q.min() >= scheme.low
    assert quantized.q.max() <= scheme.high
    assert (quantized.zero_points is None) == scheme.symmetric
    if scheme.positive or not scheme.symmetric or scheme.bits == 8:
        assert (quantized.scales > 0).all()
    step = np.abs(quantized.scales)[:, np.arange(inputs) // quantized.block]
    # Half a step everywhere, a whole one at the end of the range that a signed integer lacks (+8 in 4 bits), plus the
    # rounding of a float16 scale over the width of the range.
    bound = 1.0 if scheme.symmetric and scheme.bits == 4 else 0.5
    slack = 2.0**-11 * 2**scheme.bits if scheme.scale_dtype == "float16" else 1e-3
    zero_slack = 0.5 if not scheme.symmetric else 0.0  # the zero point is rounded too
    assert (np.abs(dequantize(quantized) - weight) <= step * (bound + slack + zero_slack) + 1e-12).all()


@pytest.mark.parametrize("scheme", [s for s in INTEGER_SCHEMES if not s.positive], ids=str)  # half steps: no exact grid
def test_exact_grid_comes_back_exactly(scheme: Scheme) -> None:
    rng = np.random.default_rng(0)
    low = -127 if scheme.bits == 8 and scheme.symmetric else scheme.low
    q = rng.integers(low, scheme.high + 1, (5, 64))
    q[:, ::16] = low  # the whole range occurs in every block, so the covering scale is the true one
    q[:, 1::16] = scheme.high
    weight = (q * 0.125).astype(np.float32)
    np.testing.assert_array_equal(dequantize(quantize(weight, scheme)), weight)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES, ids=str)
def test_zero_constant_and_tiny_blocks(scheme: Scheme) -> None:
    weight = np.zeros((4, 48), np.float32)
    weight[1] = 0.25
    weight[2] = -3.0
    weight[3] = 1e-30
    result = dequantize(quantize(weight, scheme))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[0], 0.0)
    np.testing.assert_allclose(result[1:3], weight[1:3], rtol=0.08)
    assert np.abs(result[3]).max() < 1e-3


def test_zero_is_always_representable_without_symmetry() -> None:
    weight = np.abs(_random(1, 3, 64)) + 5
    weight[:, 7] = 0.0
    result = dequantize(quantize(weight, Scheme(4, 32, symmetric=False)))
    np.testing.assert_array_equal(result[:, 7], 0.0)


def test_symmetric_4_bits_uses_all_16_levels_on_the_larger_side() -> None:
    weight = np.linspace(-0.9, 1.0, 32, dtype=np.float32)[None]
    quantized = quantize(weight, Scheme(4, 32))
    assert quantized.q.min() == -8
    assert quantized.scales is not None
    assert quantized.scales[0, 0] < 0  # the larger side is positive: the sign of the scale is turned
    np.testing.assert_allclose(dequantize(quantized)[0, -1], 1.0, rtol=1e-6)


def test_asymmetric_beats_symmetric_on_shifted_blocks() -> None:
    weight = _random(2, 16, 64) + 2
    error = {s: np.abs(dequantize(quantize(weight, Scheme(4, 32, symmetric=s))) - weight).mean() for s in (True, False)}
    assert error[False] < 0.75 * error[True]


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8), Scheme(16), Scheme(32)], ids=str)
def test_streamed_rows_equal_the_whole(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _random(3, 37, 70)
    whole = quantize(weight, scheme)
    monkeypatch.setattr("gog_edge.export.quantize.weights._ROWS_BYTES", 70 * 4 * 5)
    seen = []

    def read(start: int, stop: int) -> np.ndarray:
        seen.append((start, stop))
        return weight[start:stop]

    part = quantize_rows(read, (37, 70), scheme)
    assert len(seen) == 8
    np.testing.assert_array_equal(part.q, whole.q)
    np.testing.assert_array_equal(dequantize(part), dequantize(whole))


def test_float_schemes() -> None:
    weight = _random(4, 3, 5)
    assert quantize(weight, Scheme(16)).q.dtype == np.float16
    np.testing.assert_array_equal(dequantize(quantize(weight, Scheme(32))), weight)
    np.testing.assert_allclose(dequantize(quantize(weight, Scheme(16))), weight, rtol=1e-3)
    with pytest.raises(ValueError, match="beyond the range of float16"):
        quantize(weight * 1e6, Scheme(16))


@pytest.mark.parametrize("bad", [np.ones(3, np.float32), np.ones((0, 4), np.float32), np.full((2, 2), np.nan)])
def test_what_is_no_weight_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weight to quantise"):
        quantize(bad.astype(np.float32), Scheme(4, 32))


@pytest.mark.parametrize("arguments", [{"bits": 3}, {"bits": 4, "block": 20}, {"bits": 4, "block": -32}])
def test_bad_schemes_are_refused(arguments: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="not supported"):
        Scheme(**arguments)


def test_size_when_packed() -> None:
    weight = _random(5, 8, 64)
    assert quantize(weight, Scheme(4, 32)).nbytes == 8 * 64 // 2 + 8 * 2 * 4
    assert quantize(weight, Scheme(4, 32, symmetric=False, scale_dtype="float16")).nbytes == 256 + 32 + 8
    assert quantize(weight, Scheme(16)).nbytes == 8 * 64 * 2


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int5", "int4"])
def test_recipes(precision: str) -> None:
    recipe = Recipe.for_precision(precision)
    described = recipe.describe()
    assert described["name"] == precision
    classes = ("embedding", "head", "attention", "mlp", "down_proj", "vision", "merger")
    bits = {c: recipe.scheme(c).bits for c in classes}
    assert min(bits.values()) == {"fp32": 32, "fp16": 16, "int8": 8, "int5": 5, "int4": 4}[precision]
    if precision.startswith("int"):
        assert recipe.embedding.block == 0  # the host gathers rows with one scale each
        assert bits["head"] == bits["embedding"] == 8
    with pytest.raises(ValueError, match="unknown precision"):
        Recipe.for_precision("int3")


def test_methods_of_recipes() -> None:
    default = Recipe.for_precision("int4")
    assert {default.attention.method, default.attention_out.method, default.mlp.method} == {"gptq"}  # type: ignore[union-attr]
    assert (default.head.method, default.embedding.method, default.vision.method) == ("gptq", "mse", "mse")
    asked = Recipe.for_precision("int4", "rtn")
    assert {asked.attention.method, asked.mlp.method, asked.vision.method} == {"rtn"}
    searched = Recipe.for_precision("int8", "mse")
    assert (searched.name, searched.head.method, searched.repeatable) == ("int8", "mse", True)
    assert not Recipe.for_precision("int8").repeatable
    assert Recipe.for_precision("int8").with_method("mse").attention == searched.attention
    wide = default.at_int8(("attention",))
    assert wide.attention == Recipe.for_precision("int8").attention
    assert wide.mlp == default.mlp


def test_even_blocks_are_as_few_as_fit() -> None:
    scheme = Scheme(8, 256, even=True)
    cuts = {n: (scheme.width(n), scheme.blocks(n)) for n in (160, 256, 576, 1536, 3420)}
    assert cuts == {160: (160, 1), 256: (256, 1), 576: (192, 3), 1536: (256, 6), 3420: (256, 14)}
    assert Scheme(8, 256, even=True).width(2 * 250) == 256  # multiples of 16
    assert Scheme(8, 256).width(576) == 256


@pytest.mark.parametrize("scheme", [Scheme(8, 64, even=True, rotation=64), Scheme(4, 32, rotation=256)], ids=str)
@pytest.mark.parametrize("inputs", [20, 100, 576])
def test_turned_weights_come_back(scheme: Scheme, inputs: int) -> None:
    weight = _random(3, 6, inputs)
    quantized = quantize(weight, scheme)
    turned = scheme.turned(inputs)
    assert turned == {20: 16, 100: 64, 576: scheme.rotation}[inputs]
    step = np.abs(quantized.scales)[:, np.arange(inputs) // quantized.block]
    error = np.abs(rotate(dequantize(quantized), turned) - rotate(weight, turned))
    assert (error <= step * (1.01 if scheme.bits == 4 else 0.51) + 1e-5).all()


@pytest.mark.parametrize("rotation", [8, 48])
def test_rotations_are_powers_of_two(rotation: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Scheme(8, rotation=rotation)


def test_overrides_win() -> None:
    from dataclasses import replace

    recipe = replace(Recipe.for_precision("int4"), overrides={"a.weight": Scheme(16)})
    assert recipe.scheme("mlp", "a.weight").bits == 16
    assert recipe.scheme("mlp", "b.weight").bits == 4
