"""The gate itself: exported tiny models pass, wrong ones fail, whatever is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gog_edge.bundle import Bundle
from gog_edge.errors import ParityError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.parity.gate import fake_quantisation, gate, generated_frames, verify
from gog_edge.export.parity.metrics import Tolerances, Verdict
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme
from gog_edge.export.synthetic.checkpoint import make_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

FAMILIES = ("tiny-qwen3-vl", "tiny-qwen2.5-vl")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parity")
    names = ("tiny-qwen3-vl", "tiny-qwen3-vl-untied", "tiny-qwen2.5-vl", "tiny-qwen2.5-vl-tied")
    return {n: make_checkpoint(n, root / n, 11, "float32") for n in names}


@pytest.fixture(scope="module")
def bundles(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("bundles")
    return {n: export_bundle(checkpoints[n], root / n, ExportOptions(precision="fp32")) for n in FAMILIES}


def _stages(report) -> dict[str, Verdict]:  # type: ignore[no-untyped-def]
    return {s.name: s.verdict for s in report.stages}


@pytest.mark.parametrize("name", FAMILIES)
def test_fp32_decodes_the_same_64_tokens_in_each_of_three_turns(
    checkpoints: dict[str, Path], bundles: dict[str, Bundle], name: str
) -> None:
    report = verify(bundles[name], checkpoints[name], tokens=64).require()
    assert report.verdict is Verdict.PASS
    greedy = next(s for s in report.stages if s.name == "greedy")
    assert greedy.metrics["tokens"] == report.decoded_tokens == 192
    assert greedy.metrics["exact_agreement"] == 1
    assert report.turns == 3
    assert len(report.images) == 3
    assert report.images[2]["region"] is not None
    assert ("deepstack" in _stages(report)) == ("qwen3" in name)
    assert "pixels" in _stages(report)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["verdict"] == "pass"
    assert again["stages"][0]["metrics"]
    assert len(report.lines()) == len(report.stages)


@pytest.mark.parametrize("name", ["tiny-qwen3-vl-untied", "tiny-qwen2.5-vl-tied"])
@pytest.mark.parametrize(
    ("precision", "backend"), [("fp32", "portable"), ("fp16", "ort"), ("int8", "ort"), ("int4", "ort")]
)
def test_every_precision_passes_its_own_gate(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, precision: str, backend: str
) -> None:
    options = ExportOptions(precision=precision, backend=backend)  # type: ignore[arg-type]
    checkpoint = Checkpoint.open(checkpoints[name])
    bundle = export_bundle(checkpoint, tmp_path / "b", options, gate=gate(checkpoint, seed=4))
    report = json.loads(bundle.read_text("verify.json"))
    assert report["verdict"] in ("pass", "ambiguous")
    assert report["precision"] == precision
    assert any(s["name"] == "graph" for s in report["stages"]) == precision.startswith("int")


def test_own_images_are_shown_too(checkpoints: dict[str, Path], bundles: dict[str, Bundle], tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (90, 241, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "own.png")
    report = verify(bundles["tiny-qwen3-vl"], checkpoints["tiny-qwen3-vl"], [tmp_path / "own.png"], tokens=2)
    assert [i["name"] for i in report.images][2] == "own.png"
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_weights_give_the_same_report(
    checkpoints: dict[str, Path], bundles: dict[str, Bundle], name: str
) -> None:
    resident = verify(bundles[name], checkpoints[name], tokens=3)
    streamed = verify(bundles[name], checkpoints[name], tokens=3, memory=0)
    assert "resident" in resident.reference
    assert "streamed" in streamed.reference
    for a, b in zip(resident.stages, streamed.stages):
        assert a.metrics == pytest.approx(b.metrics)


@pytest.mark.parametrize("memory", [None, 0])
def test_bfloat16_checkpoints_are_read_in_float32(tmp_path: Path, memory: int | None) -> None:
    """A configuration that says bfloat16 must not make the reference compute in it."""
    checkpoint = make_checkpoint("tiny-qwen3-vl", tmp_path / "c", 5, "bfloat16")
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32"))
    assert verify(bundle, checkpoint, tokens=3, memory=memory).verdict is Verdict.PASS


def test_reference_equals_from_pretrained(checkpoints: dict[str, Path]) -> None:
    import torch
    import transformers

    from gog_edge.export.parity.reference import Reference

    for name, root in checkpoints.items():
        model = transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=torch.float32)
        ids = np.arange(30, 70)
        with torch.no_grad():
            expected = model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()
        np.testing.assert_allclose(
            Reference(Checkpoint.open(root)).logits(ids), expected, rtol=1e-5, atol=1e-5, err_msg=name
        )


# Things that can go wrong in an export. Each must fail the gate, and say where.


def _with_decoder(bundle: Bundle, **changes: object) -> Bundle:
    decoder = dataclasses.replace(bundle.manifest.decoder, **changes)  # type: ignore[arg-type]
    return Bundle(bundle.root, dataclasses.replace(bundle.manifest, decoder=decoder))


@pytest.mark.parametrize(
    ("fault", "stages"),
    [
        ("weights", {"vision", "prefill", "greedy"}),
        ("rope section", {"prefill", "decode"}),
        ("rope order", {"prefill", "decode"}),
        ("position table", {"vision", "deepstack", "prefill"}),
        ("pixels", {"pixels"}),
    ],
)
def test_faults_fail_where_they_are(
    checkpoints: dict[str, Path], bundles: dict[str, Bundle], tmp_path: Path, fault: str, stages: set[str]
) -> None:
    name = "tiny-qwen3-vl"
    bundle, checkpoint = bundles[name], checkpoints[name]
    manifest = bundle.manifest
    if fault == "weights":
        checkpoint = make_checkpoint(name, tmp_path / "other", 12, "float32")
    elif fault == "rope section":
        bundle = _with_decoder(bundle, mrope_section=(10, 1, 1))
    elif fault == "rope order":
        bundle = _with_decoder(bundle, mrope_interleaved=False)
    elif fault == "position table":
        vision = dataclasses.replace(manifest.vision, position_side=6)
        bundle = Bundle(bundle.root, dataclasses.replace(manifest, vision=vision))
    else:
        pre = dataclasses.replace(manifest.preprocessing, image_mean=(0.48, 0.5, 0.5))
        bundle = Bundle(bundle.root, dataclasses.replace(manifest, preprocessing=pre))
    report = verify(bundle, checkpoint, tokens=6)
    assert report.verdict is Verdict.FAIL
    verdicts = _stages(report)
    assert stages <= {n for n, v in verdicts.items() if v is Verdict.FAIL}
    if fault.startswith("rope"):
        assert verdicts["vision"] is Verdict.PASS
    with pytest.raises(ParityError, match=f"fp32 bundle differs.*{min(stages)}"):
        report.require()


@pytest.mark.parametrize(
    ("fault", "stage", "cause"),
    [
        ("rope section", "prefill", "mrope_section"),
        ("rope theta", "prefill", "rope_theta"),
        ("head", "prefill", "the first token differs already"),
        ("tower", "vision", "the tower"),
        ("tower", "prefill", "as vision"),
        ("tower", "decode", "as vision"),
        ("int4", "prefill", "the loss of quantisation, as the graphs are right"),
    ],
)
def test_failures_name_a_likely_cause(
    checkpoints: dict[str, Path], bundles: dict[str, Bundle], tmp_path: Path, fault: str, stage: str, cause: str
) -> None:
    name = "tiny-qwen3-vl"
    bundle, checkpoint, limits = bundles[name], Checkpoint.open(checkpoints[name]), None
    if fault == "rope section":
        bundle = _with_decoder(bundle, mrope_section=(10, 1, 1))
    elif fault == "rope theta":
        bundle = _with_decoder(bundle, rope_theta=50.0)
    elif fault == "int4":
        bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="int4"))
        limits = Tolerances.load("int8")
        limits = dataclasses.replace(limits, stages={**limits.stages, "graph": Tolerances.load("int4").stages["graph"]})
    else:
        from safetensors.numpy import load_file, save_file

        root = Path(shutil.copytree(checkpoints[name], tmp_path / "c"))
        values = load_file(root / "model.safetensors")
        if fault == "head":
            values["lm_head.weight"] = values["model.language_model.embed_tokens.weight"][::-1].copy()
        else:
            values["model.visual.blocks.1.mlp.linear_fc1.weight"] *= -1
        save_file(values, root / "model.safetensors", metadata={"format": "pt"})
        checkpoint = Checkpoint.open(root)
    report = verify(bundle, checkpoint, tokens=4, tolerances=limits)
    stages = {s.name: s for s in report.stages}
    assert stages[stage].verdict is Verdict.FAIL
    assert cause in stages[stage].cause
    assert all(bool(s.cause) == (s.verdict is Verdict.FAIL) for s in report.stages)
    assert any(f"likely cause: {stages[stage].cause}" in line for line in report.lines())
    with pytest.raises(ParityError, match="likely cause") as caught:
        report.require()
    assert "\n" not in str(caught.value)


def test_a_stage_that_can_not_be_compared_is_named(bundles: dict[str, Bundle], checkpoints: dict[str, Path]) -> None:
    name = "tiny-qwen3-vl"
    file = checkpoints[name] / "preprocessor_config.json"
    kept = file.read_bytes()
    file.unlink()
    try:
        report = verify(bundles[name], checkpoints[name], tokens=2)
    finally:
        file.write_bytes(kept)
    pixels = report.stages[0]
    assert (pixels.name, pixels.verdict) == ("pixels", Verdict.FAIL)
    assert "image processor" in pixels.note
    assert report.lines()[0].startswith("fail      pixels")
    with pytest.raises(ParityError, match=r"pixels: .*image processor"):
        report.require()


def test_the_export_says_how_every_stage_went(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gog_edge.cli.main import run

    command = ["export", str(checkpoints["tiny-qwen3-vl"]), "--precision", "fp32", "--verify", "-o"]
    assert run([*command, str(tmp_path / "b")]) == 0
    said = capsys.readouterr().err
    assert "verified against transformers" in said
    for stage in ("pixels", "vision", "deepstack", "prefill", "decode", "greedy"):
        assert f"pass      {stage}" in said
    strict = Tolerances("fp32", {**Tolerances.load("fp32").stages, "decode": {"at_most": {"kl_mean": -1.0}}})
    monkeypatch.setattr(Tolerances, "load", lambda precision: strict)
    assert run([*command, str(tmp_path / "c")]) == 2
    said = capsys.readouterr().err
    assert "pass      prefill" in said
    assert "fail      decode" in said
    assert not (tmp_path / "c").exists()


def test_weights_that_transformers_would_fill_at_random_are_no_reference(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    root = Path(shutil.copytree(checkpoints["tiny-qwen3-vl"], tmp_path / "c"))
    values = load_file(root / "model.safetensors")
    save_file({f"module.{k}": v for k, v in values.items()}, root / "model.safetensors")
    with pytest.raises(ParityError, match="weights at random"):
        verify(bundles["tiny-qwen3-vl"], root, tokens=2)


def test_failed_gate_leaves_no_bundle(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    other = Checkpoint.open(make_checkpoint("tiny-qwen2.5-vl", tmp_path / "other", 99, "float32"))
    with pytest.raises(ParityError, match="differs from other"):
        export_bundle(checkpoints["tiny-qwen2.5-vl"], tmp_path / "b", ExportOptions(precision="fp32"), gate=gate(other))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_graph_stage_sees_what_the_loss_of_int4_would_hide(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A recipe other than the one that was used: within the loose limits of int4, but not what the weights say."""
    checkpoint = checkpoints["tiny-qwen3-vl"]
    searched = Recipe.for_precision("int4", "mse")  # read back from the graph, another recipe would change nothing
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="int4", recipe=searched))
    wrong = dataclasses.replace(searched, mlp=Scheme(4, 0))
    manifest = dataclasses.replace(bundle.manifest, quantization=wrong.describe())
    verdicts = _stages(verify(Bundle(bundle.root, manifest), checkpoint, tokens=6))
    assert verdicts["prefill"] is Verdict.PASS
    assert verdicts["graph"] is Verdict.FAIL


def test_fake_quantisation_is_only_made_where_it_repeats(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = checkpoints["tiny-qwen3-vl"]
    searched = Recipe.for_precision("int4", "mse")
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="int4", recipe=searched))
    config = Checkpoint.open(checkpoint).config
    transform = fake_quantisation(bundle, config)
    assert transform is not None
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    assert len(np.unique(transform("model.language_model.layers.0.mlp.up_proj.weight", weight)[0, :32])) <= 16
    np.testing.assert_array_equal(transform("model.language_model.norm.weight", weight), weight)
    standard = dataclasses.replace(bundle.manifest, backend="portable")
    assert fake_quantisation(Bundle(bundle.root, standard), config) is None
    broken = dataclasses.replace(bundle.manifest, quantization={"name": 3})
    with pytest.raises(ParityError, match="recipe can't be read"):
        fake_quantisation(Bundle(bundle.root, broken), config)


def test_missing_torch_is_said_before_anything_runs(
    checkpoints: dict[str, Path], bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gog_edge.export.parity.reference", None)
    with pytest.raises(UsageError, match=r"gog-edge\[parity\]"):
        gate(Checkpoint.open(checkpoints["tiny-qwen3-vl"]))
    with pytest.raises(UsageError, match=r"gog-edge\[parity\]"):
        verify(bundles["tiny-qwen3-vl"], checkpoints["tiny-qwen3-vl"])
    with pytest.raises(UsageError, match="at least 1 token"):
        verify(bundles["tiny-qwen3-vl"], checkpoints["tiny-qwen3-vl"], tokens=0)


def test_generated_frames_are_seeded() -> None:
    assert generated_frames(1) == generated_frames(1)
    assert generated_frames(1) != generated_frames(2)
    assert {(f.width % 28, f.height % 28) for f in generated_frames(1)} != {(0, 0)}


def test_awq_checkpoint_is_exported_without_a_second_loss(tmp_path: Path) -> None:
    """Packed by hand; the int4 bundle must compute what the dequantised weights say, up to the activations' 8 bits."""
    from tests.export.weights_helpers import pack_awq, write_checkpoint

    hidden, inner, group = 128, 384, 128
    rope = {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}
    sizes: dict[str, object] = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "head_dim": 32,
        "num_attention_heads": 4,
    }
    sizes |= {"rope_scaling": rope}
    overrides = {"text_config": sizes, "vision_config": {"out_hidden_size": hidden}}
    root = make_checkpoint("tiny-qwen3-vl-untied", tmp_path / "float", 5, "float32", overrides=overrides)
    plain = Checkpoint.open(root)
    tensors = {}
    for name in sorted(plain.names()):
        weight = plain.read(name)
        if "_proj.weight" not in name or "visual" in name:
            tensors[name] = weight
            continue
        blocks = weight.reshape(len(weight), -1, group)
        low, high = blocks.min(-1), blocks.max(-1)
        scales = ((high - low) / 15).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales), 0, 15)
        q = np.clip(np.rint(blocks / scales[..., None].astype(np.float32)) + zeros[..., None], 0, 15)
        qweight, qzeros = pack_awq(q.reshape(weight.shape).T.astype(int), zeros.T.astype(int))
        base = name.removesuffix("weight")
        tensors |= {f"{base}qweight": qweight, f"{base}qzeros": qzeros, f"{base}scales": scales.T}
    packed = {**plain.config, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": group}}
    write_checkpoint(tmp_path / "awq", tensors, packed)
    for file in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
        (tmp_path / "awq" / file).write_bytes((root / file).read_bytes())
    awq = Checkpoint.open(tmp_path / "awq")
    bundle = export_bundle(awq, tmp_path / "b", ExportOptions(precision="int4"))
    assert bundle.manifest.quantization["mlp"]["method"] == "grid"
    report = verify(bundle, awq, tokens=6).require()
    kl = {s.name: s.metrics["kl_mean"] for s in report.stages if "kl_mean" in s.metrics}
    assert kl["prefill"] < 0.005  # int4 of these sizes loses ten times as much when it quantises afresh
    assert report.precision == "int4"
