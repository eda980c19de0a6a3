"""Merging adapters: against peft itself, and every adapter that must not be merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.export.weights_helpers import write_checkpoint

EMBED = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny-qwen3-vl-untied", tmp_path_factory.mktemp("lora") / "base", 1, "float32")


@pytest.fixture(scope="module")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny-qwen2.5-vl-tied", tmp_path_factory.mktemp("lora") / "tied", 1, "float32")


def _train_adapter(base: Path, out: Path, merge: bool = True, **config: Any) -> dict[str, np.ndarray]:
    """A peft adapter with random weights saved at `out`; returns the merged model's weights as peft makes them."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            with torch.no_grad():
                noise = 0.05 * torch.randn_like(parameter)
                parameter.copy_(parameter.abs() * (1 + noise) if "magnitude" in name else noise)
    adapted.save_pretrained(out)
    if not merge:
        return {}
    return {k: v.detach().numpy().copy() for k, v in adapted.merge_and_unload().state_dict().items()}


CASES: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all linear, rslora": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": r".*(qkv|proj|linear_fc1|gate_proj|down_proj|o_proj)$",
        "exclude_modules": r".*patch_embed.*",
    },
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "up_proj": 32},
    },
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "patch embedding": {"r": 2, "lora_alpha": 4, "target_modules": r".*patch_embed\.proj$"},
    "head and embedding": {"r": 2, "lora_alpha": 4, "target_modules": ["lm_head", "embed_tokens"]},
    "whole modules": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["merger", "lm_head"]},
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_merges_what_peft_merges(tiny: Path, tmp_path: Path, case: str) -> None:
    expected = _train_adapter(tiny, tmp_path / "a", **CASES[case])
    base = Checkpoint.open(tiny)
    merged = base.with_lora(tmp_path / "a")
    assert merged.names() == set(expected) == base.names()
    changed = 0
    for name, values in expected.items():
        got = merged.read(name)
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=2e-6, err_msg=name)
        changed += not np.array_equal(got, base.read(name))
        np.testing.assert_allclose(merged.read_rows(name, 1, 4), got[1:4], rtol=1e-6, atol=1e-7)
    assert changed >= (1 if case == "patch embedding" else 2)
    assert merged.adapters == (str(tmp_path / "a"),)


@pytest.mark.parity
def test_adapter_trained_with_the_other_generation_of_names(tiny: Path, tmp_path: Path) -> None:
    expected = _train_adapter(tiny, tmp_path / "a", **CASES["attention"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    stored = load_file(path)
    save_file({k.replace("model.language_model.", "model."): v for k, v in stored.items()}, path)
    merged = Checkpoint.open(tiny).with_lora(tmp_path / "a")
    for name, values in expected.items():
        np.testing.assert_allclose(merged.read(name), values, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["low rank head", "saved head", "saved embedding"])
def test_tied_head_comes_loose_when_only_one_side_is_trained(tiny_tied: Path, tmp_path: Path, kind: str) -> None:
    config: dict[str, Any] = {
        "low rank head": {"target_modules": ["lm_head"]},
        "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    }[kind]
    _train_adapter(tiny_tied, tmp_path / "a", merge=False, r=2, lora_alpha=4, **config)
    base = Checkpoint.open(tiny_tied)
    assert "lm_head.weight" not in base
    merged = base.with_lora(tmp_path / "a")
    assert merged.config["tie_word_embeddings"] is False
    assert base.config["tie_word_embeddings"] is True
    assert merged.shape("lm_head.weight") == base.shape(EMBED)
    untouched, trained = (EMBED, "lm_head.weight") if "head" in kind else ("lm_head.weight", EMBED)
    np.testing.assert_array_equal(merged.read(untouched), base.read(EMBED))
    assert not np.allclose(merged.read(trained), base.read(EMBED))


@pytest.mark.parity
def test_the_peft_model_and_the_merged_weights_give_the_same_logits_on_a_tied_model(
    tiny_tied: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    _train_adapter(tiny_tied, tmp_path / "a", merge=False, r=2, lora_alpha=4, target_modules=["lm_head", "v_proj"])
    ids = torch.arange(40, 60)[None]
    load = transformers.AutoModelForImageTextToText.from_pretrained
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(load(tiny_tied, dtype=torch.float32), tmp_path / "a")
        expected = adapted(ids).logits
        merged = Checkpoint.open(tiny_tied).with_lora(tmp_path / "a")
        config = transformers.AutoConfig.from_pretrained(tiny_tied)
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
        model = transformers.AutoModelForImageTextToText.from_config(config).float()
        model.load_state_dict({n: torch.from_numpy(np.array(merged.read(n))) for n in merged.names()})
        torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)


# Adapters that must not be merged. The good one is hand-written; each case spoils it.

TARGET = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def _adapter(root: Path, config: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None) -> Path:
    root.mkdir()
    good = {
        f"{TARGET}.lora_A.weight": np.ones((2, 5), np.float32),
        f"{TARGET}.lora_B.weight": np.ones((6, 2), np.float32),
    }
    full = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ".*", **(config or {})}
    (root / "adapter_config.json").write_text(json.dumps(full))
    save_file({**good, **(tensors or {})}, root / "adapter_model.safetensors")
    return root


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    weight = np.zeros((6, 5), np.float32)
    tensors = {"model.layers.0.self_attn.q_proj.weight": weight, "model.norm.weight": np.ones(5, np.float32)}
    return Checkpoint.open(write_checkpoint(tmp_path / "base", tensors))


def test_plain_scale_and_stacked_adapters(base: Checkpoint, tmp_path: Path) -> None:
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    once = base.with_lora(_adapter(tmp_path / "a"))
    np.testing.assert_array_equal(once.read(name), np.full((6, 5), 4.0, np.float32))  # alpha / r * (1 + 1)
    rs = base.with_lora(_adapter(tmp_path / "b", {"use_rslora": True}))
    np.testing.assert_allclose(rs.read(name), 2 * 4 / np.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(once.with_lora(tmp_path / "a").read(name), 8.0)


@pytest.mark.parametrize(
    ("config", "tensors", "line"),
    [
        ({"peft_type": "IA3"}, None, "IA3 adapter"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "changed the base weights"),
        ({"layer_replication": [[0, 2]]}, None, "layer replication"),
        ({"target_parameters": ["w"]}, None, "bare parameters"),
        ({"use_dora": True}, None, "lacks the magnitudes"),
        ({"lora_alpha": "many"}, None, "lora_alpha is not a number"),
        (None, {f"{TARGET}.lora_A.weight": np.ones((2, 4), np.float32)}, "the base weight"),
        (None, {f"{TARGET}.lora_B.weight": np.ones((6, 3), np.float32)}, "the base weight"),
        (None, {f"{TARGET}.lora_magnitude_vector": np.ones(3, np.float32)}, "magnitudes"),
        (None, {TARGET.replace(".0.self_attn.q_proj", "") + ".lora_A.weight": np.ones((2, 5), np.float32)}, "adapts"),
        (None, {f"{TARGET}.lora_mystery": np.ones(3, np.float32)}, "not understood"),
        (None, {"base_model.model.model.norm.weight": np.ones(6, np.float32)}, "resized vocabulary"),
        (None, {"base_model.model.nowhere.weight": np.ones(6, np.float32)}, "base checkpoint does not have"),
    ],
)
def test_what_can_not_be_merged_right_is_refused(
    base: Checkpoint, tmp_path: Path, config: dict[str, Any] | None, tensors: dict[str, np.ndarray] | None, line: str
) -> None:
    with pytest.raises(CheckpointError, match=line) as caught:
        base.with_lora(_adapter(tmp_path / "a", config, tensors))
    assert "\n" not in str(caught.value)


def test_adapter_of_a_layer_that_the_base_lacks(base: Checkpoint, tmp_path: Path) -> None:
    other = TARGET.replace("layers.0", "layers.7")
    tensors = {
        f"{other}.lora_A.weight": np.ones((2, 5), np.float32),
        f"{other}.lora_B.weight": np.ones((6, 2), np.float32),
    }
    with pytest.raises(CheckpointError, match=r"layers\.7.*does not have"):
        base.with_lora(_adapter(tmp_path / "a", None, tensors))


def test_missing_files(base: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        base.with_lora(tmp_path / "empty")
    root = _adapter(tmp_path / "a")
    (root / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks adapter_model"):
        base.with_lora(root)
    (root / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        base.with_lora(root)
    (root / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read as JSON"):
        base.with_lora(root)


def test_half_an_adapter(base: Checkpoint, tmp_path: Path) -> None:
    root = _adapter(tmp_path / "a")
    save_file({f"{TARGET}.lora_A.weight": np.ones((2, 5), np.float32)}, root / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="lacks lora_B"):
        base.with_lora(root)
