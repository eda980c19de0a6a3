"""Graphs of target `plain`: which runtimes know their operators, and what ONNX's own evaluator makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from gog_edge.bundle import Bundle
from gog_edge.deadline import Budget
from gog_edge.engines.base import Features
from gog_edge.engines.openvino.decoder import OvDecoder
from gog_edge.engines.openvino.engine import OvVision
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.export.tensorrt.build import BuildOptions, build_graph
from gog_edge.runtime.session import Session
from tests.engines.host_trt import need_rtx
from tests.engines.test_openvino import model, turns
from tests.runtime.fakes import make_bundle

LISTS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "operators").glob("*.json")
}
DENSE = ("tiny-qwen3-vl", "tiny-qwen2.5-vl")


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        assert node.domain in ("", "ai.onnx"), node.domain
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from operators(attribute.g)


def used(bundle: Bundle) -> set[str]:
    found: set[str] = set()
    for graph in ("vision", "decoder"):
        loaded = onnx.load(str(bundle.path(f"{graph}.onnx")), load_external_data=False)
        assert [(i.domain, i.version) for i in loaded.opset_import] == [("", 21)]
        found |= set(operators(loaded.graph))
    return found


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", DENSE)
def test_every_operator_is_in_the_list_of_tensorrt_10(name: str, precision: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(name, tmp_path / "c", dtype="float32")
    options = ExportOptions(precision=precision, backend="openvino", compute="float16", kv_dtype="float16")
    mine = used(export_bundle(checkpoint, tmp_path / "b", options))
    assert ("DequantizeLinear" in mine) == (precision == "int4")
    assert mine - set(LISTS["tensorrt-10"]["operators"]) == set()
    assert mine - set(LISTS["openvino"]["operators"]) <= {"Split", "Sqrt", "Sub", "Transpose", "Unsqueeze", "Where"}


def test_what_the_other_lists_lack_is_known(tmp_path: Path) -> None:
    """QNN's list leaves Reshape and Shape out, CoreML's has no reductions but sums: graphs would fall apart there."""
    mine = used(make_bundle(tmp_path, "tiny-qwen3-vl", "openvino"))
    assert mine - set(LISTS["qnn"]["operators"]) == {"Reshape", "Shape"}
    lacking = {
        "Gather",
        "Gelu",
        "LayerNormalization",
        "Neg",
        "ReduceMean",
        "Shape",
        "Slice",
        "Softmax",
        "Split",
        "Unsqueeze",
    }
    assert mine - set(LISTS["coreml"]["operators"]) == lacking


@pytest.mark.parametrize(("name", "operator"), [("tiny-qwen3.5", "Scan"), ("tiny-qwen3-vl-moe", "ScatterND")])
def test_other_families_need_no_other_names(name: str, operator: str, tmp_path: Path) -> None:
    """By name; experts add with ScatterND, of which TensorRT's list says that it does not reduce."""
    mine = used(make_bundle(tmp_path, name, "openvino"))
    assert operator in mine and mine - set(LISTS["tensorrt-10"]["operators"]) == set()


def test_the_lists_say_where_they_are_from() -> None:
    assert set(LISTS) == {"tensorrt-10", "openvino", "qnn", "coreml"}
    assert all(found["source"].startswith("https://github.com/") and found["operators"] for found in LISTS.values())


class Evaluated:
    """In `OvGraph`'s place: the graph as ONNX's reference implementation computes it."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        spec = bundle.manifest.graphs[name]
        self.inputs = {t.name: t for t in spec.inputs}
        self.outputs = {t.name: t for t in spec.outputs}
        self._evaluator = ReferenceEvaluator(str(bundle.path(spec.file)))

    def compiled(self, sizes: Any = None) -> Any:
        return SimpleNamespace(create_infer_request=SimpleNamespace)

    def run(self, request: Any, feeds: dict[str, NDArray[Any]], budget: Budget) -> None:
        results = self._evaluator.run(list(self.outputs), dict(feeds))
        tensors = {n: SimpleNamespace(data=np.asarray(r)) for n, r in zip(self.outputs, results)}
        request.get_tensor = tensors.__getitem__


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", DENSE)
def test_the_reference_evaluator_gives_the_same_tokens(name: str, precision: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(name, tmp_path / "c", dtype="float32")
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision=precision, backend="openvino"))
    plain = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False, optimize="none"))
    want = turns(Session(model(bundle, plain)), count=3)
    vision: Any = OvVision(Evaluated(bundle, "vision"), static=False)  # type: ignore[arg-type]
    graph: Any = Evaluated(bundle, "decoder")
    decoder = OvDecoder(graph, bundle.manifest, room=128, chunk=64, static=False)
    engine: Any = SimpleNamespace(vision=vision, decoder=decoder, describe=plain.describe, close=lambda: None)
    assert turns(Session(model(bundle, engine)), count=3) == want
    assert isinstance(vision.run(_inputs(bundle)), Features)


def _inputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    from gog_edge.runtime.vision import vision_inputs

    patches = np.ones((16, bundle.manifest.preprocessing.patch_values), np.float32)
    return {"patches": patches, **vision_inputs(bundle.manifest, 4, 4)}


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_tensorrt_rtx_builds_them(precision: Any, tmp_path: Path) -> None:
    """The tower's attention is one kernel again. The decoder's is products around one kernel of masks and softmax; no
    cache is copied."""
    library = need_rtx()
    options = ExportOptions(precision=precision, backend="openvino", compute="float16", kv_dtype="float16")
    bundle = export_bundle(make_checkpoint(DENSE[0], tmp_path / "c", dtype="float32"), tmp_path / "b", options)
    build = BuildOptions(compute_capabilities=("89",), capacity=256, chunk=64)
    reports = {
        graph: build_graph(library, bundle.root, bundle.manifest, graph, ("89",), build).report  # type: ignore[arg-type]
        for graph in ("vision", "decoder")
    }
    assert reports["vision"]["attention"] == "fused"
    assert reports["decoder"]["seen"] == "engine" and reports["decoder"]["cache_copies"] == 0
