"""Searching and calibrated quantisation: each method must be better at what it claims to be better at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gog_edge.errors import UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.quantize.calibration import Calibration, CalibrationWriter, LayerStats
from gog_edge.export.quantize.gptq import inverse_factor
from gog_edge.export.quantize.scheme import QuantizedWeight, Scheme, dequantize
from gog_edge.export.quantize.search import search_mse
from gog_edge.export.quantize.weights import quantize
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.export.synthetic.configs import model_config
from gog_edge.families.weights import tensor_classes

RNG = np.random.default_rng(8)


def _weight(rows: int = 24, inputs: int = 200) -> np.ndarray:
    return (0.05 * RNG.standard_t(4, (rows, inputs))).astype(np.float32)


def _inputs(inputs: int, tokens: int = 600) -> np.ndarray:
    """Correlated, with a few strong channels, as in a real network."""
    mixed = RNG.standard_normal((tokens, inputs // 4)) @ RNG.standard_normal((inputs // 4, inputs))
    strength = np.exp(RNG.standard_normal(inputs))
    return ((mixed + 0.3 * RNG.standard_normal((tokens, inputs))) * strength).astype(np.float32)


def _stats(x: np.ndarray) -> LayerStats:
    return LayerStats(np.square(x).mean(0), np.abs(x).mean(0), (x.T @ x / len(x)).astype(np.float32), len(x))


def _error(weight: np.ndarray, scheme: Scheme, stats: LayerStats | None = None, x: np.ndarray | None = None) -> float:
    difference = dequantize(quantize(weight, scheme, stats)) - weight
    return float(np.square(difference if x is None else x @ difference.T).mean())


SCHEMES = [
    Scheme(4, 32),
    Scheme(4, 32, symmetric=False),
    Scheme(4, 64, scale_dtype="float16"),
    Scheme(4, 0),
    Scheme(4, 32, positive=True),
    Scheme(8, 32),
    Scheme(8),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_mse_is_never_worse_than_rtn_in_any_block(scheme: Scheme) -> None:
    weight = _weight()
    errors = {}
    for method in ("rtn", "mse"):
        chosen = quantize(weight, replace(scheme, method=method))  # type: ignore[arg-type]
        squared = np.square(dequantize(chosen) - weight).astype(np.float64)
        width = scheme.width(weight.shape[1])
        errors[method] = np.add.reduceat(squared, np.arange(0, weight.shape[1], width), axis=1)
        assert chosen.q.min() >= (-127 if scheme == Scheme(8) else scheme.low)
        if scheme.positive:
            assert chosen.scales is not None
            assert (chosen.scales > 0).all()
    # The padding of a short last block counts too, so blocks are compared where there is none.
    full = slice(0, weight.shape[1] // scheme.width(weight.shape[1]))
    assert (errors["mse"][:, full] <= errors["rtn"][:, full] * (1 + 1e-5) + 1e-12).all()
    assert errors["mse"].sum() < errors["rtn"].sum()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_native_search_is_the_numpy_search(scheme: Scheme, weighted: bool) -> None:
    from gog_edge.export.quantize import native, search

    if native._function() is None:
        pytest.skip("no compiler")
    weight = _weight(40, 205)
    weight[3] = 0
    weight[4, :64] = 1e-30
    importance = np.exp(RNG.standard_normal(205)).astype(np.float32) if weighted else None
    strength = None if importance is None else search._strength(importance)
    fast = search.search_mse(weight, scheme, importance)
    slow = search.search_mse_numpy(weight, scheme, strength)
    assert (fast[0] != slow[0]).mean() < 0.01  # sums are added in another order: rarely a tie falls the other way
    assert (fast[2] is None) == (slow[2] is None) == scheme.symmetric
    errors = []
    for q, scale, zero in (fast, slow):
        values = dequantize(QuantizedWeight(q, scale, zero, scheme.width(205), scheme))
        assert np.isfinite(values).all()
        errors.append(float((np.square(values - weight) * (1 if strength is None else strength)).sum()))
    assert errors[0] == pytest.approx(errors[1], rel=5e-3)  # positive scales put the extremes on a tie
    np.testing.assert_array_equal(fast[1], fast[1].astype(scheme.scale_dtype).astype(np.float32))


def test_numpy_searches_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from gog_edge.export.quantize import native

    weight = _weight()
    expected = quantize(weight, Scheme(4, 32, method="mse"))
    monkeypatch.setattr(native, "_function", lambda: None)
    assert (quantize(weight, Scheme(4, 32, method="mse")).q == expected.q).mean() > 0.99


def test_importance_moves_the_error_to_inputs_that_do_not_matter() -> None:
    weight, stats, scheme = _weight(), _stats(_inputs(200)), Scheme(4, 32)
    losses = []
    for importance in (stats.mean_square, None):
        q, scale, zero = search_mse(weight, scheme, importance)
        error = dequantize(QuantizedWeight(q, scale, zero, 32, scheme)) - weight
        losses.append(float((np.square(error) @ stats.mean_square).sum()))
    assert losses[0] < losses[1]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_more_than_halves_the_output_error_of_4_bits(scheme: Scheme) -> None:
    weight, x = _weight(), _inputs(200)
    stats = _stats(x)
    rtn = _error(weight, scheme, x=x)
    gptq = _error(weight, replace(scheme, method="gptq"), stats, x)
    assert gptq < (0.5 if scheme.bits == 4 else 0.9) * rtn


def test_gptq_needs_calibration_and_streams_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats = _weight(), _stats(_inputs(200))
    scheme = Scheme(4, 32, method="gptq")
    with pytest.raises(ValueError, match="needs calibration"):
        quantize(weight, scheme)
    whole = quantize(weight, scheme, stats)
    monkeypatch.setattr("gog_edge.export.quantize.weights._ROWS_BYTES", 200 * 4 * 7)
    np.testing.assert_array_equal(quantize(weight, scheme, stats).q, whole.q)


def test_gptq_survives_dead_and_collinear_inputs() -> None:
    x = _inputs(64, tokens=10)  # fewer tokens than inputs: singular without damping
    x[:, 5] = 0
    weight = _weight(8, 64)
    result = dequantize(quantize(weight, Scheme(4, 32, method="gptq"), _stats(x)))
    assert np.isfinite(result).all()
    assert np.abs(result - weight).max() < 2 * np.abs(weight).max()
    order, upper = inverse_factor(_stats(x).hessian)
    assert sorted(order) == list(range(64))
    assert np.allclose(np.tril(upper, -1), 0)
    with pytest.raises(ValueError, match="square"):
        inverse_factor(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="positive definite"):
        inverse_factor(np.full((4, 4), np.nan, np.float32))


def test_hqq_gives_outliers_their_error() -> None:
    """HQQ minimises an l_p norm with p < 1: the typical error gets smaller, the largest may grow."""
    weight = _weight(64, 256)
    weight[:, ::37] *= 6
    rtn = np.abs(dequantize(quantize(weight, Scheme(4, 64))) - weight)
    hqq = np.abs(dequantize(quantize(weight, Scheme(4, 64, method="hqq"))) - weight)
    assert np.power(hqq, 0.7).mean() < np.power(rtn, 0.7).mean()
    asymmetric = quantize(weight, Scheme(4, 64, False, "hqq"))
    assert asymmetric.zero_points is not None


@pytest.mark.parametrize("old", [32, 64, 128])
@pytest.mark.parametrize("scheme", [Scheme(4, 32, False), Scheme(4, 32, scale_dtype="float16"), Scheme(4, 64, False)])
def test_grid_loses_nothing_where_weights_were_quantised_before(old: int, scheme: Scheme) -> None:
    groups = np.arange(512) // old
    q = np.clip(np.rint(RNG.normal(8, 2.5, (32, 512))), 0, 15)
    zeros = np.full((32, 512 // old), 8) if scheme.symmetric else RNG.integers(2, 14, (32, 512 // old))
    scales = (0.005 + 0.02 * RNG.random((32, 512 // old))).astype(np.float16).astype(np.float32)
    weight = ((q - zeros[:, groups]) * scales[:, groups]).astype(np.float32)
    again = dequantize(quantize(weight, replace(scheme, method="grid")))
    if scheme.block <= old:
        np.testing.assert_allclose(again, weight, atol=1e-6)
        assert np.abs(dequantize(quantize(weight, replace(scheme, method="mse"))) - weight).max() > 1e-3
    else:
        assert np.abs(again - weight).mean() < 0.5 * scales.mean()


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method 'best' is unknown"):
        Scheme(4, 32, method="best")  # type: ignore[arg-type]


def test_calibration_files_round_trip(tmp_path: Path) -> None:
    x = _inputs(16, 50)
    writer = CalibrationWriter()
    writer.add("q", ("a.weight", "b.weight"), x[:20])
    writer.add("q", ("a.weight", "b.weight"), x[20:])
    calibration = writer.save(tmp_path / "c", {"tokens": 50})
    for opened in (calibration, Calibration.open(tmp_path / "c")):
        stats = opened("b.weight")
        assert stats is not None
        assert stats is opened("a.weight")  # one file, read once
        assert stats.count == 50
        np.testing.assert_allclose(stats.hessian, _stats(x).hessian, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stats.mean_abs, np.abs(x).mean(0), rtol=1e-5)
        assert opened("c.weight") is None
        assert opened.meta == {"tokens": 50}
        with pytest.raises(UsageError, match="of another checkpoint: they differ in"):
            opened.check(lambda name: (4, 16), {"model.language_model.layers.0.mlp.up_proj.weight"})
    (tmp_path / "c" / "calibration.json").write_text("{}")
    for folder in (tmp_path / "c", tmp_path / "missing"):
        with pytest.raises(UsageError, match="calibrate again"):
            Calibration.open(folder)


@pytest.mark.parity
def test_calibration_statistics_are_those_of_the_layers_inputs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from gog_edge.export.parity.calibrate import calibrate
    from gog_edge.export.parity.rollouts import Talk

    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "ck", 3, "float32")
    talks = [Talk(np.arange(30, 70)), Talk(np.arange(100, 125))]
    stats = calibrate(Checkpoint.open(root), talks, tmp_path / "cal", memory=0)
    model = transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=torch.float32).eval()
    seen: list[np.ndarray] = []
    down = model.model.language_model.layers[1].mlp.down_proj
    down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].numpy()))
    with torch.no_grad():
        for talk in talks:
            model(torch.from_numpy(talk.tokens)[None])
    x = np.concatenate(seen)
    known = stats("model.language_model.layers.1.mlp.down_proj.weight")
    assert known is not None
    assert known.count == len(x) == 65
    np.testing.assert_allclose(known.hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-6)
    with pytest.raises(UsageError, match="at least one conversation"):
        calibrate(Checkpoint.open(root), [], tmp_path / "cal")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head.weight", "head"),
        ("model.language_model.embed_tokens.weight", "embedding"),
        ("model.language_model.layers.11.self_attn.o_proj.weight", "attention_out"),
        ("model.language_model.layers.11.self_attn.q_norm.weight", None),
        ("model.language_model.layers.0.mlp.gate_proj.weight", "mlp"),
        ("model.language_model.layers.0.mlp.down_proj.weight", "down_proj"),
        ("model.language_model.layers.0.self_attn.q_proj.bias", None),
        ("model.language_model.norm.weight", None),
        ("model.visual.blocks.3.attn.qkv.weight", "vision"),
        ("model.visual.blocks.3.mlp.down_proj.weight", "vision"),
        ("model.visual.blocks.3.norm1.weight", None),
        ("model.visual.merger.mlp.2.weight", "merger"),
        ("model.visual.merger.ln_q.weight", None),
        ("model.visual.deepstack_merger_list.1.linear_fc2.weight", "merger"),
        ("model.visual.deepstack_merger_list.1.norm.weight", None),
        ("model.visual.patch_embed.proj.weight", None),
        ("model.visual.pos_embed.weight", None),
    ],
)
def test_tensor_classes(name: str, expected: str | None) -> None:
    of_family = [tensor_classes(model_config(shape)) for shape in ("qwen3-vl-2b", "qwen2.5-vl-7b")]
    assert {classes[name] for classes in of_family if name in classes} == ({expected} if expected else set())
