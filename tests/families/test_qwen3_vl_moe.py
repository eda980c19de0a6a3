"""Qwen3-VL-MoE against transformers: both layouts of the experts, every backend, odd numbers of experts."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from gog_edge import families
from gog_edge.errors import CheckpointError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.graph.matrix import check_shape
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.gate import verify
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.export.synthetic.configs import model_config
from gog_edge.families.base import DecoderDims
from gog_edge.families.weights import decoder_inputs, tensor_classes
from gog_edge.manifest import Backend, PrecisionName
from tests.export.graph_driver import Runner, conversation
from tests.native.graphs import needs_ops

TINY = "tiny-qwen3-vl-moe"
BACKENDS = ["ort", "portable", pytest.param("native", marks=needs_ops)]
EVEN = {"hidden_size": 64, "moe_intermediate_size": 96, "decoder_sparse_step": 1, "num_hidden_layers": 3}
# Text configuration over the tiny one (56 wide, 6 experts of 44, 2 a token, in every second of 4 layers).
CASES: dict[str, dict[str, Any]] = {
    "odd sizes": {},
    "four experts, one a token": {"num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": False},
    "64 experts, 8 a token, every layer": {**EVEN, "num_experts": 64, "num_experts_per_tok": 8},
    "all experts": {"num_experts": 5, "num_experts_per_tok": 5, "decoder_sparse_step": 1},
    "layers by name": {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2], "num_experts": 16, "norm_topk_prob": False},
    "no layer": {"decoder_sparse_step": 9},
}


def small(out: Path, text: dict[str, Any], spelling: Any = "published", dtype: str = "float32", **root: Any) -> Path:
    overrides: dict[str, Any] = {"text_config": text, **root}
    if "hidden_size" in text:
        overrides["vision_config"] = {"out_hidden_size": text["hidden_size"]}
    return make_checkpoint(TINY, out, 11, dtype, spelling=spelling, overrides=overrides)


def dims(**text: Any) -> DecoderDims:
    config = model_config(TINY)
    config["text_config"].update(text)
    return families.find(config).parse(config).decoder


@dataclass
class Case:
    """A checkpoint, and what transformers makes of two images and some words: all logits and the next 64 tokens."""

    root: Path
    logits: NDArray[np.float32]
    written: list[int]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    pytest.importorskip("torch")
    from tests.export.test_graph_parity import GRIDS, Reference

    folder = tmp_path_factory.mktemp("moe")
    spelling = "v5" if "norm_topk_prob" in CASES[request.param] else "published"
    root = small(folder / "c", CASES[request.param], spelling)
    config = json.loads((root / "config.json").read_text("utf-8"))
    config["tie_word_embeddings"] = spelling == "v5"  # a stored head that differs is used, whatever the flag says
    (root / "config.json").write_text(json.dumps(config), "utf-8")
    reference = Reference(root)
    bundle = export_bundle(root, folder / "b", ExportOptions(precision="fp32"))
    arguments = reference.arguments(conversation(bundle, GRIDS), bundle.manifest.preprocessing.patch_size)
    return Case(root, reference.logits(arguments), reference.greedy(arguments, 64))


@pytest.mark.parity
@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_writes_what_transformers_writes(case: Case, backend: Backend, tmp_path: Path) -> None:
    """Two images, read whole and in pieces, then 64 tokens; the head is stored, and the flag says the same or not."""
    from tests.export.test_graph_parity import GRIDS

    bundle = export_bundle(case.root, tmp_path / "b", ExportOptions(precision="fp32", backend=backend))
    runner = Runner(bundle, capacity=160)
    x, positions, deepstack, after = runner.inputs(conversation(bundle, GRIDS))
    _near(runner.step(x, positions, deepstack, last_k=len(x)), case.logits, backend)
    runner.past = 0
    assert deepstack is not None
    for start, stop in itertools.pairwise([0, 9, 10, 31, len(x)]):
        logits = runner.step(x[start:stop], positions[:, start:stop], deepstack[:, start:stop])
    if backend == "native":
        return  # a rounded key can send a token to another expert: from there on both may write something else
    _near(logits, case.logits[-1:], backend)
    assert runner.greedy(logits, after, 64) == case.written


def _near(got: NDArray[np.float32], want: NDArray[np.float32], backend: str) -> None:
    """Native bundles keep keys and values in float16 and read in bfloat16, so a near tie of experts may turn."""
    off = np.abs(got - want).max(axis=1) / np.abs(want).max()
    assert off.max() < 2e-4 if backend != "native" else np.quantile(off, 0.8) < 5e-3, off


@pytest.mark.parity
@pytest.mark.parametrize(
    ("backend", "precision", "kind"),
    [
        ("ort", "fp32", "MoE"),
        ("ort", "int8", "QMoE"),
        ("ort", "int4", "QMoE"),
        ("portable", "int4", "Loop"),
        pytest.param("native", "fp16", "ExpertLinearF16", marks=needs_ops),
        pytest.param("native", "int8", "ExpertLinearW8", marks=needs_ops),
        pytest.param("native", "int4", "ExpertLinearW4", marks=needs_ops),
    ],
)
def test_the_gate_passes(backend: Backend, precision: PrecisionName, kind: str, tmp_path: Path) -> None:
    """Three turns with two images, sizes that blocks divide, so that each backend uses the operator made for it."""
    pytest.importorskip("torch")
    text = {**EVEN, "hidden_size": 128, "moe_intermediate_size": 256, "num_experts": 12, "num_experts_per_tok": 3}
    root = small(tmp_path / "c", text, dtype="bfloat16")
    bundle = export_bundle(root, tmp_path / "b", ExportOptions(precision=precision, backend=backend))
    assert kind in {n.op_type for n in onnx.load(bundle.path("decoder.onnx"), load_external_data=False).graph.node}
    verify(bundle, Checkpoint.open(root)).require()


@pytest.mark.parity
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_experts_that_blocks_do_not_divide_stay_what_the_recipe_says(precision: PrecisionName, tmp_path: Path) -> None:
    """ONNX Runtime's QMoE wants whole blocks; a loop with the same integers takes its place."""
    pytest.importorskip("torch")
    root = small(tmp_path / "c", {})
    bundle = export_bundle(root, tmp_path / "b", ExportOptions(precision=precision, backend="ort"))
    report = verify(bundle, Checkpoint.open(root)).require()
    assert next(s for s in report.stages if s.name == "graph").verdict.value == "pass"


def test_both_layouts_are_the_same_tensor(tmp_path: Path) -> None:
    published, saved = (Checkpoint.open(small(tmp_path / s, {}, s)) for s in ("published", "v5"))
    name = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    assert published.shape(name) == saved.shape(name) == (6, 88, 56)
    stored = published._plain
    assert stored is not None and stored.shape(name) == (6, 56, 88)
    raw = stored.rows(name, 2, 4)
    assert np.array_equal(published.read_rows(name, 2, 4), raw.swapaxes(1, 2))


def test_a_square_stack_beside_a_turned_one_is_refused(tmp_path: Path) -> None:
    root = small(tmp_path / "c", {"moe_intermediate_size": 28})  # gate and up are 56 x 56
    with pytest.raises(CheckpointError, match=r"gate_up_proj is square, and .*down_proj is stored as"):
        Checkpoint.open(root)
    Checkpoint.open(small(tmp_path / "saved", {"moe_intermediate_size": 28}, "v5"))


def test_experts_one_by_one_are_refused() -> None:
    """transformers fills them at random for this family."""
    names = {"model.language_model.layers.1.mlp.experts.0.gate_proj.weight"}

    class Source:
        def names(self) -> set[str]:
            return names

    with pytest.raises(CheckpointError, match=r"tensors for each expert \(.*experts\.0\.…\) and no .*gate_up_proj"):
        check_shape(Source(), "model.language_model.layers.1.mlp.experts.gate_up_proj", (6, 88, 56))  # type: ignore[arg-type]


def test_configuration() -> None:
    spec = dims().spec
    assert (spec.experts, spec.experts_used) == (6, 2)
    found = dims().experts
    assert found is not None and found.layers == (1, 3) and found.intermediate == 44
    assert dims(num_experts=None, num_local_experts=6) == dims(num_local_experts=6) == dims()
    assert dims(num_experts=0).experts is None and dims(mlp_only_layers=[1, 3]).spec.experts == 0
    seven = {"num_attention_heads": 7, "num_key_value_heads": 7, "rope_scaling": {"mrope_section": [2, 1, 1]}}
    assert dims(head_dim=None, **seven).spec.head_dim == 8  # Qwen3-VL without experts has 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"num_local_experts": 7}, "num_local_experts = 7 differs from num_experts = 6"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok = 7 is more than the 6 experts"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({"num_experts": None}, "num_experts is missing"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must be at least 1"),
    ],
)
def test_wrong_values_are_named(text: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dims(**text)


def test_experts_have_a_scheme_and_no_calibration() -> None:
    config = model_config(TINY)
    classes, name = tensor_classes(config), "model.language_model.layers.1.mlp."
    assert classes[f"{name}experts.gate_up_proj"] == "mlp" and classes[f"{name}experts.down_proj"] == "down_proj"
    assert f"{name}gate.weight" not in classes
    assert not any(
        "experts" in weight or weight.endswith("mlp.gate.weight") for w in decoder_inputs(config) for weight in w
    )


@pytest.mark.parametrize("backend", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_backends_without_experts_refuse_them(backend: Backend, tmp_path: Path) -> None:
    root = small(tmp_path / "c", {})
    with pytest.raises(UsageError, match=f"layers of experts, which backend {backend} does not build"):
        export_bundle(root, tmp_path / "b", ExportOptions(backend=backend))
    export_bundle(small(tmp_path / "dense", {"num_experts": 0}), tmp_path / "b", ExportOptions(backend=backend))


def _moe(**attributes: Any) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """One node MoE with logits and rows so large that a limited SwiGLU would show."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    weights = {
        "up": rng.standard_normal((8, 64, 32)).astype(np.float32) * 4,
        "down": rng.standard_normal((8, 32, 32)).astype(np.float32),
    }
    node = helper.make_node("MoE", ["x", "logits", "up", "", "down"], ["y"], domain="com.microsoft", k=3, **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "moe",
        [value("x", TensorProto.FLOAT, [None, 32]), value("logits", TensorProto.FLOAT, [None, 8])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), weights


def test_the_stock_operator_computes_a_plain_swiglu() -> None:
    """Its own defaults are those of GPT-OSS: silu(1.702 x) and up + 1, both limited."""
    import onnxruntime

    from gog_edge.export.graph.ort_experts import SWIGLU

    model, weights = _moe(**SWIGLU)
    rng = np.random.default_rng(6)
    x, logits = rng.standard_normal((9, 32)).astype(np.float32), rng.standard_normal((9, 8)).astype(np.float32)
    got = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x, "logits": logits})[
        0
    ]
    want = np.zeros_like(x)
    for row in range(9):
        picked = np.argsort(-logits[row])[:3]
        shares = np.exp(logits[row, picked] - logits[row].max())
        for expert, share in zip(picked, shares / shares.sum()):
            gate, up = (weights["up"][expert] @ x[row]).reshape(-1, 2).T
            assert np.abs(gate).max() > 10
            want[row] += share * (weights["down"][expert] @ (gate / (1 + np.exp(-gate)) * up))
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
