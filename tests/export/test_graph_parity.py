"""Exported graphs against transformers: both families, both targets, odd shapes, prefill in pieces, decoding."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gog_edge.bundle import Bundle
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.export.graph_driver import Conversation, Runner, conversation
from tests.native.graphs import needs_ops

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

GRIDS = [(6, 10), (14, 4)]  # no multiple of the window in either direction
# Shapes beyond the tiny checkpoints' own: GQA ratio 1, 3 and 6, odd widths, another head size, biases.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "q3": ("tiny-qwen3-vl", {}),
    "q3-untied": ("tiny-qwen3-vl-untied", {}),
    "q3-mha-bias": (
        "tiny-qwen3-vl",
        {"text_config": {"num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": True}},
    ),
    "q2.5": ("tiny-qwen2.5-vl", {}),
    "q2.5-tied": ("tiny-qwen2.5-vl-tied", {}),
    "q2.5-mqa": (
        "tiny-qwen2.5-vl",
        {"num_key_value_heads": 1, "vision_config": {"fullatt_block_indexes": [0], "intermediate_size": 53}},
    ),
}


class Reference:
    """The checkpoint in transformers, float32."""

    def __init__(self, root: Path) -> None:
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=torch.float32).eval()

    def arguments(self, talk: Conversation, patch: int) -> dict[str, Any]:
        """Model inputs of a conversation; a still image fills both temporal slices."""
        ids = torch.tensor(talk.ids)[None]
        pixels = [
            np.repeat(p.reshape(len(p), 3, 1, patch * patch), 2, axis=2).reshape(len(p), -1) for p in talk.patches
        ]
        arguments: dict[str, Any] = {"input_ids": ids}
        if pixels:
            arguments |= {
                "pixel_values": torch.tensor(np.concatenate(pixels)),
                "image_grid_thw": torch.tensor([[1, *grid] for grid in talk.grids]),
                "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
            }
        return arguments

    def logits(self, arguments: dict[str, Any]) -> np.ndarray:
        with torch.no_grad():
            return self.model(**arguments).logits[0].numpy()

    def greedy(self, arguments: dict[str, Any], count: int) -> list[int]:
        with torch.no_grad():
            out = self.model.generate(**arguments, max_new_tokens=count, do_sample=False, eos_token_id=None)
        return out[0, arguments["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    name, overrides = CASES[request.param]
    root = tmp_path_factory.mktemp("checkpoint") / "c"
    make_checkpoint(name, root, 11, "float32", overrides=overrides)
    reference = Reference(root)
    if overrides.get("text_config", {}).get("attention_bias"):  # the synthetic writer knows no such biases
        torch.manual_seed(0)
        for key, parameter in reference.model.named_parameters():
            if key.endswith("_proj.bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        (root / "model.safetensors").unlink()
        reference.model.save_pretrained(root)
    return root, reference


def export(root: Path, out: Path, **options: Any) -> Bundle:
    return export_bundle(root, out, ExportOptions(**{"precision": "fp32", **options}))


@pytest.mark.parametrize("backend", ["ort", "portable", "openvino"])
def test_fp32_equals_transformers(case: tuple[Path, Reference], backend: str, tmp_path: Path) -> None:
    root, reference = case
    bundle = export(root, tmp_path / "b", backend=backend)
    talk = conversation(bundle, GRIDS)
    arguments = reference.arguments(talk, bundle.manifest.preprocessing.patch_size)
    want = reference.logits(arguments)

    runner = Runner(bundle)
    x, positions, deepstack, after = runner.inputs(talk)
    got = runner.step(x, positions, deepstack, last_k=len(x))
    assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()

    # The same tokens in pieces that cut through the first image, then decoding on the same buffers.
    runner.past = 0
    for value in runner.cache.values():
        value.update_inplace(np.full(value.shape(), 9.0, np.float32))  # stale rows must not matter
    cuts = [0, 9, 10, 31, len(x)]
    for start, stop in itertools.pairwise(cuts):
        part = None if deepstack is None else deepstack[:, start:stop]
        logits = runner.step(x[start:stop], positions[:, start:stop], part)
    assert np.abs(logits[0] - want[-1]).max() < 2e-4 * np.abs(want).max()
    assert runner.greedy(logits, after, 32) == reference.greedy(arguments, 32)


def test_text_alone(case: tuple[Path, Reference], tmp_path: Path) -> None:
    root, reference = case
    bundle = export(root, tmp_path / "b")
    talk = conversation(bundle, [], words=20)
    arguments = reference.arguments(talk, 0)
    runner = Runner(bundle)
    x, positions, deepstack, after = runner.inputs(talk)
    logits = runner.step(x, positions, deepstack)
    assert runner.greedy(logits, after, 16) == reference.greedy(arguments, 16)


@pytest.mark.parametrize("grid", [(2, 2), (2, 26), (30, 2), (18, 22)])
def test_vision_at_extreme_grids(case: tuple[Path, Reference], grid: tuple[int, int], tmp_path: Path) -> None:
    root, reference = case
    bundle = export(root, tmp_path / "b")
    talk = conversation(bundle, [grid])
    arguments = reference.arguments(talk, bundle.manifest.preprocessing.patch_size)
    with torch.no_grad():
        want = reference.model.model.get_image_features(arguments["pixel_values"], arguments["image_grid_thw"])
    got = Runner(bundle).encode(talk.patches[0], grid)
    features = want.pooler_output[0].numpy()
    assert np.abs(got[0] - features).max() < 1e-4 * np.abs(features).max()
    if bundle.manifest.decoder.deepstack:
        layers = [layer[0] if isinstance(layer, (list, tuple)) else layer for layer in want.deepstack_features]
        deep = np.stack([layer.numpy() for layer in layers])
        assert np.abs(got[1] - deep).max() < 1e-4 * np.abs(deep).max()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize(
    ("precision", "backend", "least"),
    [
        ("fp16", "ort", 0.99999),
        ("fp16", "portable", 0.99999),
        ("int8", "ort", 0.999),
        ("int8", "portable", 0.999),
        ("int4", "ort", 0.96),
        ("int4", "portable", 0.96),
    ],
)
def test_quantised_graphs_stay_near(
    case: tuple[Path, Reference], precision: str, backend: str, least: float, tmp_path: Path
) -> None:
    root, reference = case
    bundle = export(root, tmp_path / "b", precision=precision, backend=backend)
    talk = conversation(bundle, GRIDS[:1])
    want = reference.logits(reference.arguments(talk, bundle.manifest.preprocessing.patch_size))
    runner = Runner(bundle)
    x, positions, deepstack, _ = runner.inputs(talk)
    assert cosine(runner.step(x, positions, deepstack, last_k=len(x)), want) > least


@needs_ops
@pytest.mark.parametrize(
    ("precision", "kv_dtype", "least"), [("int8", "float16", 0.999), ("int8", "int8", 0.999), ("int4", "float16", 0.96)]
)
def test_native_operators_stay_near(
    case: tuple[Path, Reference], precision: str, kv_dtype: str, least: float, tmp_path: Path
) -> None:
    root, reference = case
    bundle = export(root, tmp_path / "b", precision=precision, backend="native", kv_dtype=kv_dtype)
    talk = conversation(bundle, GRIDS)
    want = reference.logits(reference.arguments(talk, bundle.manifest.preprocessing.patch_size))
    runner = Runner(bundle)
    x, positions, deepstack, _ = runner.inputs(talk)
    whole = runner.step(x, positions, deepstack, last_k=len(x))
    assert cosine(whole, want) > least
    runner.past = 0
    for start, stop in itertools.pairwise([0, 9, 10, 31, len(x)]):  # the same cache, written in pieces
        part = None if deepstack is None else deepstack[:, start:stop]
        logits = runner.step(x[start:stop], positions[:, start:stop], part)
    assert cosine(logits[0], whole[-1]) > 0.998  # activations are quantised: another blocking rounds otherwise


@needs_ops
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_native_nodes_take_in_their_neighbours(case: tuple[Path, Reference], precision: str, tmp_path: Path) -> None:
    root, _ = case
    bundle = export(root, tmp_path / "b", precision=precision, backend="native")
    manifest = bundle.manifest
    for name, layers in (("vision", manifest.vision.depth), ("decoder", manifest.decoder.layers)):
        graph = onnx.load(bundle.path(f"{name}.onnx"), load_external_data=False).graph
        kinds = Counter(node.op_type for node in graph.node)
        assert sum(kinds[k] for k in kinds if k.endswith(("Attention", "AttentionF16"))) == layers
        assert sum(kinds[k] for k in kinds if k.startswith("LinearW")) >= 4 * layers
        assert not kinds.keys() & {"Gelu", "QuickGelu", "SkipLayerNormalization", "Split", "MatMulNBits"}
        merged = 1 if name == "vision" else 0  # the merger's norm stands before a reshape
        assert kinds["LayerNormalization"] + kinds["SimplifiedLayerNormalization"] == merged


@pytest.mark.parametrize("backend", ["tensorrt", "cuda"])
def test_half_precision_arithmetic(case: tuple[Path, Reference], backend: str, tmp_path: Path) -> None:
    """What GPUs run: float16 matrices and cache, float32 residual stream; here on ONNX Runtime's CPU kernels."""
    root, reference = case
    bundle = export(root, tmp_path / "b", precision="fp16", backend=backend)
    assert bundle.manifest.decoder.kv_dtype == "float16"
    talk = conversation(bundle, GRIDS[:1])
    want = reference.logits(reference.arguments(talk, bundle.manifest.preprocessing.patch_size))
    runner = Runner(bundle)
    x, positions, deepstack, _ = runner.inputs(talk)
    assert cosine(runner.step(x, positions, deepstack, last_k=len(x)), want) > 0.9999
