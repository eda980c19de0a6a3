"""Adapters as peft loads them: over tied bases, with patterns, in both generations of names, from the hub.

Expected is the model with peft's layers in it, which is the one that was trained; not `merge_and_unload`, which adds
the change of head or embedding to both where they are one tensor.
"""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gog_edge.cli.main import run
from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.gate import verify
from gog_edge.export.parity.metrics import Verdict
from gog_edge.export.pipeline import check_checkpoint, export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
IDS = np.arange(40, 60)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base that config.json ties: without a head, with an equal one, with another one."""
    root = tmp_path_factory.mktemp("tied")
    bases = {"absent": make_checkpoint("tiny-qwen2.5-vl-tied", root / "absent", 1, "float32")}
    for stored in ("equal", "other"):
        bases[stored] = Path(shutil.copytree(bases["absent"], root / stored))
        values = load_file(bases[stored] / "model.safetensors")
        table = values["model.embed_tokens.weight"]
        values[HEAD] = np.ascontiguousarray(table if stored == "equal" else table[::-1])
        save_file(values, bases[stored] / "model.safetensors", metadata={"format": "pt"})
    return bases


def load(root: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=torch.float32).eval()


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.eval()(torch.from_numpy(IDS)[None]).logits[0])


def train(base: Path, out: Path, **config: Any) -> Path:
    """An adapter with random weights, saved by peft."""
    model = peft.get_peft_model(load(base), peft.LoraConfig(**{"r": 2, "lora_alpha": 4, **config}))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or "modules_to_save" in name
        if trained or (config.get("bias") == "all" and name.endswith("bias")):
            with torch.no_grad():
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(out)
    return out


def as_peft(base: Path, adapter: Path) -> np.ndarray:
    return logits(peft.PeftModel.from_pretrained(load(base), adapter))


def as_exported(checkpoint: Checkpoint) -> np.ndarray:
    """transformers' own layers with our tensors, the head told apart."""
    tied = check_checkpoint(checkpoint).decoder.tied
    config = transformers.AutoConfig.from_pretrained(checkpoint.root)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    state = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.names()}
    state[HEAD] = torch.from_numpy(checkpoint.read(EMBED if tied else HEAD))
    model.load_state_dict(state)
    return logits(model)


KINDS: dict[str, dict[str, Any]] = {
    "low rank head": {"target_modules": ["lm_head", "v_proj"]},
    "low rank embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "low rank both": {"target_modules": ["lm_head", "embed_tokens"]},
    "saved head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    "saved both": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "low rank embedding, saved head": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
    "neither": {"target_modules": ["v_proj"]},
}


# peft takes no adapter of the last kind with ensure_weight_tying
ENSURED = [kind for kind in KINDS if kind != "low rank embedding, saved head"]


@pytest.mark.parametrize("stored", ["absent", "equal", "other"])
@pytest.mark.parametrize(("kind", "ensure"), [*((k, False) for k in KINDS), *((k, True) for k in ENSURED)])
def test_head_and_embedding_over_a_tied_base(
    tied: dict[str, Path], tmp_path: Path, kind: str, ensure: bool, stored: str
) -> None:
    adapter = train(tied[stored], tmp_path / "a", ensure_weight_tying=ensure, **KINDS[kind])
    checkpoint = Checkpoint.open(tied[stored]).with_lora(adapter)
    expected = as_peft(tied[stored], adapter)
    np.testing.assert_allclose(as_exported(checkpoint), expected, rtol=1e-4, atol=1e-4)
    still_tied = stored != "other" and (ensure or kind == "neither")
    assert check_checkpoint(checkpoint).decoder.tied == still_tied


@pytest.mark.parametrize("stored", ["absent", "other"])
def test_a_merged_folder_is_exported_as_it_is_stored(tied: dict[str, Path], tmp_path: Path, stored: str) -> None:
    """merge_and_unload of a trained head saves both tensors, and in some versions leaves the flags at tied."""
    adapter = train(tied[stored], tmp_path / "a", **KINDS["saved head"])
    merged = peft.PeftModel.from_pretrained(load(tied[stored]), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "m")
    for flag in (True, False):
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = flag
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        checkpoint = Checkpoint.open(tmp_path / "m")
        np.testing.assert_allclose(as_exported(checkpoint), logits(load(tmp_path / "m")), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(as_exported(checkpoint), as_peft(tied[stored], adapter), rtol=1e-4, atol=1e-4)


FULL = "model.language_model.layers.1.self_attn.q_proj"
SETTINGS: dict[str, dict[str, Any]] = {
    "end of a name": {"alpha_pattern": {"q_proj": 64}},
    "full path": {"alpha_pattern": {FULL: 64}},
    "full path of another generation": {"alpha_pattern": {FULL.replace(".language_model", ""): 64}},
    "the first pattern decides": {"alpha_pattern": {"q_proj": 3, FULL: 64}},
    "regex": {"alpha_pattern": {r".*layers\.[01]\.self_attn\.(q|v)_proj": 64}},
    "half a word": {"alpha_pattern": {"attn.q_proj": 64, "_proj": 9}},
    "anchored": {"alpha_pattern": {"^q_proj": 64}},
    "rank": {"rank_pattern": {"layers.0.self_attn.q_proj": 5, "v_proj": 1}, "use_rslora": True},
    "rank and alpha": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 7}},
    "layers": {"layers_to_transform": [1]},
    "layers by pattern": {"layers_to_transform": 2, "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["layers.0.self_attn.q_proj"], "target_modules": ["q_proj", "up_proj"]},
    "regex of targets": {"target_modules": r"model\.language_model\.layers\.\d\.(mlp|self_attn)\.(up|o)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "biases": {"bias": "all"},
    "lora biases": {"bias": "lora_only"},
    "fan in": {"fan_in_fan_out": True},
    "dora": {"use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(tied: dict[str, Path], tmp_path: Path, case: str) -> None:
    base = tied["absent"]
    adapter = train(base, tmp_path / "a", **{"target_modules": ["q_proj", "v_proj"], **SETTINGS[case]})
    expected = as_peft(base, adapter)
    got = as_exported(Checkpoint.open(base).with_lora(adapter))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - logits(load(base))).max() > 1e-2


@pytest.mark.parametrize("targets", ["all-linear", ["in_proj_qkv", "in_proj_a", "out_proj", "q_proj", "down_proj"]])
def test_layers_of_linear_attention(tmp_path: Path, targets: Any) -> None:
    without = {"text_config": {"mtp_num_hidden_layers": 0}}  # transformers has no place for that head
    base = make_checkpoint("tiny-qwen3.5", tmp_path / "c", 3, "float32", overrides=without)
    adapter = train(base, tmp_path / "a", target_modules=targets)
    expected = as_peft(base, adapter)
    assert not np.allclose(expected, logits(load(base)), atol=0.1)
    np.testing.assert_allclose(as_exported(Checkpoint.open(base).with_lora(adapter)), expected, rtol=1e-4, atol=1e-4)


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def old_names(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    values = {
        name.replace("model.model.language_model.", "model.model.").replace("model.model.visual.", "model.visual."): v
        for name, v in load_file(path).items()
    }
    save_file(values, path)


OLD = FULL.replace(".language_model", "")


@pytest.mark.parametrize(
    ("pattern", "today"),
    [
        (OLD, FULL),
        (FULL, FULL),
        ("q_proj", "q_proj"),
        (r"model\.layers\.\d\.self_attn\.q_proj", "q_proj"),
        ("^x", "^x"),
    ],
)
def test_an_adapter_of_transformers_4_is_scaled_by_its_own_names(
    tied: dict[str, Path], tmp_path: Path, pattern: str, today: str
) -> None:
    """Trained as model.layers.…, with patterns for those names. Today's peft loads none of its tensors by itself."""
    base = tied["absent"]
    modern = train(base, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    edit(modern, alpha_pattern={today: 64})
    expected = as_peft(base, modern)
    old = Path(shutil.copytree(modern, tmp_path / "old"))
    old_names(old)
    edit(old, alpha_pattern={pattern: 64})
    np.testing.assert_allclose(as_peft(base, old), logits(load(base)), rtol=1e-5)  # nothing was loaded
    checkpoint = Checkpoint.open(base).with_lora(old)
    np.testing.assert_allclose(as_exported(checkpoint), expected, rtol=1e-4, atol=1e-4)
    if pattern != "^x":
        bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32"))
        assert verify(bundle, checkpoint, tokens=2).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"target_modules": ["v_proj"]}, "does not target"),
        ({"exclude_modules": "q_proj|.*layers.1.*q_proj"}, "does not target"),
        ({"layers_to_transform": [0]}, "does not target"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": "("}, "no pattern of names"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern can't be"),
        ({"r": 3}, "has rank 2, adapter_config.json says 3"),
        ({"init_lora_weights": "lora_ga"}, "changed the base weights"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"velora_config": {"scale": 1}}, "VeLoRA"),
    ],
)
def test_what_peft_would_leave_out_or_compute_otherwise_is_refused(
    tied: dict[str, Path], tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    adapter = train(tied["absent"], tmp_path / "a", target_modules=["q_proj", "v_proj"])
    edit(adapter, **changes)
    with pytest.raises(CheckpointError, match=line) as caught:
        Checkpoint.open(tied["absent"]).with_lora(adapter)
    assert "\n" not in str(caught.value)


def test_half_of_a_tied_adapter_is_refused(tied: dict[str, Path], tmp_path: Path) -> None:
    adapter = train(tied["absent"], tmp_path / "a", ensure_weight_tying=True, target_modules=["lm_head", "v_proj"])
    path = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "embed_tokens" not in k}, path)
    with pytest.raises(CheckpointError, match="none of the embedding"):
        Checkpoint.open(tied["absent"]).with_lora(adapter)


# -- the gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "precision"), [("low rank head", "int8"), ("saved head", "fp32"), ("neither", "int8")]
)
def test_the_gate_loads_adapters_with_peft(tied: dict[str, Path], tmp_path: Path, kind: str, precision: str) -> None:
    checkpoint = Checkpoint.open(tied["equal"]).with_lora(train(tied["equal"], tmp_path / "a", **KINDS[kind]))
    options = ExportOptions(precision=precision)  # type: ignore[arg-type]
    report = verify(export_bundle(checkpoint, tmp_path / "b", options), checkpoint, tokens=4).require()
    stages = {stage.name: stage for stage in report.stages}
    assert ("graph" in stages) == (precision == "int8")
    if kind == "neither":
        short = verify(tmp_path / "b", checkpoint, tokens=4, memory=0)
        assert short.verdict is not Verdict.FAIL
        assert "streamed" in short.reference
        if precision == "int8":
            assert {s.name: s for s in short.stages}["graph"].verdict is Verdict.SKIPPED


def test_a_wrong_scale_of_ours_does_not_pass(
    tied: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate must not share the exporter's reading of an adapter."""
    from gog_edge.export.checkpoint.lora_config import AdapterConfig

    adapter = train(tied["absent"], tmp_path / "a", target_modules=["q_proj", "v_proj"])
    monkeypatch.setattr(AdapterConfig, "scale", lambda self, names, rank: 0.5)
    checkpoint = Checkpoint.open(tied["absent"]).with_lora(adapter)
    report = verify(export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32")), checkpoint, tokens=2)
    assert report.verdict is Verdict.FAIL
    prefill = next(stage for stage in report.stages if stage.name == "prefill")
    assert "an adapter" in prefill.cause


# -- the hub ---------------------------------------------------------------------------------------------------------


def test_an_adapter_may_be_a_hub_id(
    tied: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--lora owner/name` goes through the hub's client, like checkpoints; a fake one, so nothing touches a network."""
    adapter = train(tied["absent"], tmp_path / "a", target_modules=["q_proj"])
    asked: list[str] = []

    def snapshot_download(repo_id: str, revision: str | None = None, allow_patterns: object = None) -> str:
        asked.append(repo_id)
        if repo_id == "owner/adapter":
            return str(adapter)
        raise type("RepositoryNotFoundError", (Exception,), {})("no")

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    base, out = str(tied["absent"]), tmp_path / "b"
    command = ["export", base, "-o", str(out), "--precision", "fp32", "--lora"]
    assert run([*command, "owner/adapter"]) == 0, capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["provenance"]["adapters"] == ["owner/adapter"]
    assert asked == ["owner/adapter"]
    assert run([*command, "owner/missing"]) == 2
    assert "no such repository" in " ".join(capsys.readouterr().err.split())
    assert run([*command, str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in " ".join(capsys.readouterr().err.split())
