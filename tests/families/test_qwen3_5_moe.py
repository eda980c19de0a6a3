"""Qwen3.5 with experts against transformers: experts stacked and one by one, three turns with two images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge import families
from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.gate import verify
from gog_edge.export.parity.metrics import Verdict
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.export.synthetic.configs import model_config
from gog_edge.manifest import Backend, PrecisionName
from tests.native.graphs import needs_ops

TINY = "tiny-qwen3.5-moe"
CASES: dict[str, dict[str, Any]] = {
    "ten experts, three a token": {},
    "one by one": {"num_experts": 4, "num_experts_per_tok": 1, "shared_expert_intermediate_size": 30},
}


def one_by_one(root: Path) -> None:
    """Store the experts of the checkpoint in `root` as single tensors."""
    from safetensors.numpy import load_file, save_file

    stored, single = load_file(root / "model.safetensors"), {}
    for name, values in stored.items():
        block, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for i, expert in enumerate(values):
                gate, up = np.split(expert, 2)
                single |= {f"{block}.{i}.gate_proj.weight": gate.copy(), f"{block}.{i}.up_proj.weight": up.copy()}
        elif block.endswith("mlp.experts"):
            single |= {f"{block}.{i}.down_proj.weight": expert.copy() for i, expert in enumerate(values)}
        else:
            single[name] = values
    save_file(single, root / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hybrid-moe") / "c"
    make_checkpoint(TINY, root, 11, "float32", overrides={"text_config": CASES[request.param]})
    if request.param == "one by one":
        pytest.importorskip("safetensors")
        one_by_one(root)
    return root


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["ort", "portable"])
def test_three_turns_with_two_images_equal_transformers(checkpoint: Path, backend: Backend, tmp_path: Path) -> None:
    """66 tokens in three turns; transformers reads it all at once, and would write the same at every place."""
    pytest.importorskip("torch")
    from gog_edge.export.parity.reference import Reference
    from gog_edge.runtime.session import Session
    from tests.export.test_hybrid_parity import running, shown, talk

    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32", backend=backend))
    with running(bundle, chunk=19) as model:
        session = Session(model)
        places = talk(session, turns=3, tokens=22)
        logits = Reference(Checkpoint.open(checkpoint)).logits(session.tokens, shown(model, session))
    best = logits[np.array(places) - 1].argmax(axis=1)
    assert best.tolist() == [int(token) for token in np.asarray(session.tokens)[places]]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("portable", "int8"),
        ("ort", "int4"),
        pytest.param("native", "int8", marks=needs_ops),
        pytest.param("native", "int4", marks=needs_ops),
    ],
)
def test_the_gate_passes(backend: Backend, precision: PrecisionName, tmp_path: Path) -> None:
    """At 4 bits a policy of random numbers writes something else often; its graph must compute what its weights say."""
    pytest.importorskip("torch")
    root = make_checkpoint(TINY, tmp_path / "c", 11)
    bundle = export_bundle(root, tmp_path / "b", ExportOptions(precision=precision, backend=backend))
    failed = {stage.name for stage in verify(bundle, Checkpoint.open(root)).stages if stage.verdict is Verdict.FAIL}
    assert not failed - ({"greedy"} if precision == "int4" else set())


def test_experts_one_by_one_are_the_stacked_ones(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    root = make_checkpoint(TINY, tmp_path / "c")
    stacked = Checkpoint.open(root)
    names = [f"model.language_model.layers.3.mlp.experts.{kind}" for kind in ("gate_up_proj", "down_proj")]
    wanted = [stacked.read(name) for name in names]
    everything = stacked.names()
    one_by_one_bf16(root, stacked)
    single = Checkpoint.open(root)
    assert single.names() == everything
    for name, want in zip(names, wanted):
        assert single.shape(name) == want.shape
        assert np.array_equal(single.read_rows(name, 2, 5), want[2:5])


def one_by_one_bf16(root: Path, stacked: Checkpoint) -> None:
    """Like `one_by_one`, of a checkpoint that numpy can't read by itself."""
    from safetensors.numpy import save_file

    save_file({name: stacked.read(name) for name in stacked.names()}, root / "model.safetensors", {"format": "pt"})
    one_by_one(root)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    root = make_checkpoint(TINY, tmp_path / "c", dtype="float32")
    one_by_one(root)
    file, lost = root / "model.safetensors", "model.language_model.layers.0.mlp.experts.4.up_proj.weight"
    values = safetensors.load_file(file)
    del values[lost]
    safetensors.save_file(values, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks {lost}"):
        Checkpoint.open(root)


def test_configuration() -> None:
    config = model_config(TINY)
    found = families.find(config).parse(config).decoder
    assert (found.spec.experts, found.spec.experts_used, found.intermediate) == (10, 3, 44)
    assert found.experts is not None and found.experts.layers == tuple(range(5))
    config["text_config"] |= {"num_local_experts": 7, "decoder_sparse_step": 2, "mlp_only_layers": [0]}  # mean nothing
    assert families.find(config).parse(config).decoder == found
    config["text_config"]["num_experts"] = 0
    with pytest.raises(CheckpointError, match="num_experts must be at least 1"):
        families.find(config).parse(config)
