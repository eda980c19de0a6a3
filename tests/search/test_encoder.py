"""A given ONNX encoder: preparation, pooling, fingerprint, errors. The model is two nodes made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gog_edge.errors import EngineError, RegionError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.search.encoder import EncoderOptions, OnnxEncoder
from gog_edge.types import Region


def make_encoder(path: Path, shape: list[Any], output: str = "mean", axes: tuple[int, ...] = (2, 3)) -> Path:
    """A graph that reduces the picture over `axes`, or passes it on."""
    if output == "mean":
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    else:
        node = helper.make_node("Identity", ["x"], ["y"])
    axes_tensor = helper.make_tensor("axes", TensorProto.INT64, [len(axes)], list(axes))
    graph = helper.make_graph(
        [node],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [axes_tensor] if output == "mean" else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


def halves() -> Frame:
    """Left half red, right half blue, 64 x 32."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    pixels[:, 32:, 2] = 255
    return Frame.open(pixels)


PLAIN = EncoderOptions(mean=(0, 0, 0), std=(1, 1, 1))


def test_regions_are_cut_from_the_original_frame(tmp_path: Path) -> None:
    encoder = OnnxEncoder(make_encoder(tmp_path / "e.onnx", [1, 3, 16, 16]), PLAIN)
    np.testing.assert_allclose(encoder.embed(halves(), Region(0, 0, 32, 32)), [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(encoder.embed(halves(), Region(32, 0, 99, 99)), [0, 0, 1], atol=1e-3)
    whole = encoder.embed(halves())
    np.testing.assert_allclose(whole, [2**-0.5, 0, 2**-0.5], atol=2e-2)
    assert whole.dtype == np.float32
    with pytest.raises(RegionError):
        encoder.embed(halves(), Region(100, 100, 120, 120))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_fits_keep_what_they_promise(tmp_path: Path, fit: str) -> None:
    path = make_encoder(tmp_path / "e.onnx", [1, 3, 8, 8], "identity")
    encoder = OnnxEncoder(path, EncoderOptions(mean=(0, 0, 0), std=(1, 1, 1), fit=fit, pool="none"))
    picture = encoder.embed(halves()).reshape(3, 8, 8)
    red = picture[0] / picture.max()
    if fit == "pad":
        assert red[0].tolist() == pytest.approx([128 / 255] * 8, abs=1e-2)
    else:
        assert red[0, 0] == pytest.approx(1.0, abs=2e-2)
        assert red[0, 7] == pytest.approx(0.0, abs=2e-2)


def test_layout_is_read_off_the_graph(tmp_path: Path) -> None:
    encoder = OnnxEncoder(make_encoder(tmp_path / "e.onnx", ["n", "h", "w", 3], axes=(1, 2)), PLAIN)
    assert encoder.options.layout == "nhwc"
    assert encoder.options.size == (224, 224)
    np.testing.assert_allclose(encoder.embed(halves(), Region(0, 0, 32, 32)), [1, 0, 0], atol=1e-3)


def test_options_beside_the_model_join_the_fingerprint(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "e.onnx", [1, 3, "h", "w"])
    plain = OnnxEncoder(path).fingerprint
    assert OnnxEncoder(path).fingerprint == plain
    (tmp_path / "e.json").write_text(json.dumps({"size": 32, "fit": "pad", "mean": [0, 0, 0]}), encoding="utf-8")
    beside = OnnxEncoder(path)
    assert beside.options.size == (32, 32)
    assert beside.fingerprint != plain


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"sise": 3}, "sise"),
        ({"size": [1, 2, 3]}, "size"),
        ({"std": [0, 1, 1]}, "std"),
        ({"fit": "x"}, "fit"),
        ({"mean": "a"}, "mean"),
        ({"size": 90000}, "size"),
        ({"output": 3}, "output"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        EncoderOptions.parse(values, "here")


def test_unusable_models_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such"):
        OnnxEncoder(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(EngineError, match="can't load") as caught:
        OnnxEncoder(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="one float input"):
        OnnxEncoder(make_encoder(tmp_path / "flat.onnx", [1, 8], "identity"))
    fixed = make_encoder(tmp_path / "e.onnx", [1, 3, 16, 16])
    with pytest.raises(UsageError, match="16x16"):
        OnnxEncoder(fixed, EncoderOptions(size=(32, 32)))
    with pytest.raises(UsageError, match="no output"):
        OnnxEncoder(fixed, EncoderOptions(output="zzz"))
    black = Frame.open(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(EngineError, match="length 0"):
        OnnxEncoder(fixed, PLAIN).embed(black)
