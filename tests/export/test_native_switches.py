"""Switches of the native operators: what they write into graphs, where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from gog_edge.errors import UsageError
from gog_edge.export.options import ExportOptions, resolve
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.native.contract import DOMAIN, VISION_PRECISIONS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny-qwen3-vl", tmp_path_factory.mktemp("switches") / "c", 3)


def _attributes(file: Path, kind: str) -> list[dict[str, int]]:
    nodes = onnx.load(file, load_external_data=False).graph.node
    return [{a.name: a.i for a in n.attribute} for n in nodes if n.domain == DOMAIN and n.op_type == kind]


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({"precision": "int4"}, "int8"),
        ({"precision": "int8", "vision_attention": "bfloat16"}, "bfloat16"),
        ({"precision": "fp16"}, "bfloat16"),
        ({"precision": "fp32"}, "float32"),
    ],
)
def test_vision_attention(options: dict[str, Any], precision: str, checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(backend="native", **options))
    found = _attributes(bundle.path("vision.onnx"), "VisionAttention")
    assert {a["precision"] for a in found} == {VISION_PRECISIONS[precision]}
    assert bundle.manifest.provenance["vision_attention"] == precision


@pytest.mark.parametrize(("exact", "bits"), [(False, 4), (True, 4), (True, 5)])
def test_exact_int4(exact: bool, bits: int, checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"precision": f"int{bits}", "backend": "native", "exact_int4": exact}
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(**options))
    found = _attributes(bundle.path("decoder.onnx"), f"LinearW{bits}")
    assert found
    assert {a.get("exact", 0) for a in found} == {int(exact)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision_attention": "int8"}, "vision_attention needs backend native"),
        ({"vision_attention": "int4", "backend": "native"}, "vision_attention 'int4' is unknown"),
        ({"exact_int4": True}, "a switch of backend native"),
        ({"exact_int4": True, "backend": "native", "precision": "int8"}, "for int4 and int5: int8 has no blocks"),
        ({"exact_int4": True, "backend": "native", "precision": "fp32"}, "for int4 and int5: fp32 has no blocks"),
        ({"precision": "int5", "backend": "ort"}, "no operators for 5 bits"),
        ({"precision": "int5", "backend": "native", "int8": ("mlp",)}, "of an int4 export"),
    ],
)
def test_refused_elsewhere(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(ExportOptions(**options))
