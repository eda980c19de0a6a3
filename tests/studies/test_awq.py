"""Scaling by activations: the float model stays, the quantised layer gets better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gog_edge.errors import UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import dequantize
from gog_edge.export.quantize.weights import quantize
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.families.weights import decoder_inputs, tensor_classes
from studies.awq import ScaledCheckpoint, find_scaling


@pytest.mark.parametrize("name", ["tiny-qwen3-vl", "tiny-qwen2.5-vl"])
@pytest.mark.parity
def test_scaling_leaves_the_float_model_alone_and_helps_the_quantised_layer(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from gog_edge.export.parity.calibrate import calibrate
    from gog_edge.export.parity.reference import Reference
    from gog_edge.export.parity.rollouts import Talk

    checkpoint = Checkpoint.open(make_checkpoint(name, tmp_path / "ck", 3, "float32"))
    rng = np.random.default_rng(0)
    talks = [Talk(rng.integers(0, 600, 80)) for _ in range(4)]
    stats = calibrate(checkpoint, talks, tmp_path / "cal")
    text = checkpoint.config.get("text_config") or checkpoint.config
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    layers = text["num_hidden_layers"]
    decoder = {weight for weights in decoder_inputs(checkpoint.config) for weight in weights}
    assert set(stats.files) == decoder
    assert stats.check(checkpoint.shape, decoder) is stats
    with pytest.raises(UsageError, match="of another checkpoint"):
        stats.check(lambda name: (3, 3), decoder)
    recipe = Recipe.for_precision("int4", "mse")
    scaling = find_scaling(checkpoint, stats, recipe, layers, heads // kv_heads, head_dim)
    assert scaling.exponents
    scaled = ScaledCheckpoint(checkpoint, scaling)
    down = "model.language_model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(scaled.read_rows(down, 2, 5), scaled.read(down)[2:5])
    assert scaled.shape(down) == checkpoint.shape(down)
    assert scaled.names() == checkpoint.names()
    ids = talks[0].tokens
    plain = Reference(checkpoint).logits(ids)
    moved = Reference(checkpoint, scaling.apply).logits(ids)
    np.testing.assert_allclose(moved, plain, atol=2e-4)
    for weight, exponent in scaling.exponents.items():
        known, then = stats(weight), scaling.stats(weight, stats(weight))
        assert known is not None
        assert then is not None
        assert exponent > 0
        scheme = recipe.scheme(tensor_classes(checkpoint.config)[weight])
        before = dequantize(quantize(checkpoint.read(weight), scheme)) - checkpoint.read(weight)
        after = dequantize(quantize(scaled.read(weight), scheme)) - scaled.read(weight)
        if "up_proj" in weight or "v_proj" in weight or "gate" in weight or "q_proj" in weight or "k_proj" in weight:
            continue  # searched together with others
        loss = [np.einsum("oi,ij,oj->", d, s.hessian, d) for d, s in ((before, known), (after, then))]
        assert loss[1] < loss[0]
