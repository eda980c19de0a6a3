"""`gog-edge calibrate` and an export that uses it, end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from gog_edge.bundle import Bundle
from gog_edge.cli.main import run
from gog_edge.export.synthetic.checkpoint import make_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def test_calibrated_export_passes_the_gate_and_loses_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "ck", 6, "float32")
    stats = tmp_path / "stats"
    assert run(["calibrate", str(root), "-o", str(stats), "--count", "4"]) == 0
    assert "4 conversations" in " ".join(capsys.readouterr().err.split())
    losses = {}
    for name, more in (("mse", ["--method", "mse"]), ("gptq", ["--calibration", str(stats)])):
        out = tmp_path / name
        arguments = ["export", str(root), "-o", str(out), "--backend", "ort", "--verify", *more]
        assert run(arguments) == 0, capsys.readouterr().err
        report = json.loads(Bundle.open(out).read_text("verify.json"))
        stages = {s["name"]: s["metrics"] for s in report["stages"]}
        assert "graph" in stages  # what calibration decided is read back from the graph
        losses[name] = stages["prefill"]["kl_mean"]
        assert Bundle.open(out).manifest.quantization["mlp"]["method"] == name
    assert losses["gptq"] < 0.7 * losses["mse"]


def test_an_image_token_that_the_policy_writes_asks_for_no_image(
    tmp_path: Path,
) -> None:
    """A head that favours <|image_pad|>: transformers would count those tokens as places of images."""
    import gog_edge
    from gog_edge.agent.options import RunOptions
    from gog_edge.export.checkpoint.reader import Checkpoint
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.parity.calibrate import calibrate
    from gog_edge.export.parity.reference import Reference
    from gog_edge.export.parity.rollouts import record
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.prompts import Ask

    root = make_checkpoint("tiny-qwen3-vl-untied", tmp_path / "ck", 1, "float32")
    pad = json.loads((root / "config.json").read_text())["image_token_id"]
    values = load_file(root / "model.safetensors")
    head = values["lm_head.weight"]
    head *= 0.1
    head[pad] = 3 * np.random.default_rng(0).standard_normal(head.shape[1])
    save_file(values, root / "model.safetensors", metadata={"format": "pt"})
    Image.new("RGB", (90, 60), (200, 30, 90)).save(tmp_path / "own.png")
    checkpoint = Checkpoint.open(root)
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision="fp32"))
    options = RunOptions(grammar="off", turn_tokens=12, max_turns=1, prefix_cache=False)
    with gog_edge.load(bundle, options=options) as agent:
        (talk,) = record(agent, [Ask(tmp_path / "own.png", "what?")])
    places = np.flatnonzero(talk.written)
    assert (talk.tokens[places] == pad).any()
    assert calibrate(checkpoint, [talk], tmp_path / "stats").meta["tokens"] == len(talk.tokens)
    logits = Reference(checkpoint).logits(talk.tokens, talk.images)
    assert (logits[places - 1].argmax(-1) == talk.tokens[places]).mean() > 0.7  # the rest was forced by the runtime


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "mse", "--calibration", "nowhere"], "uses no --calibration"),
        (["--method", "rtn", "--precision", "fp16"], "for int4, int5 and int8"),
        (["--calibration", "nowhere"], "calibrate again"),
    ],
)
def test_bad_combinations_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "ck")
    assert run(["export", str(root), "-o", str(tmp_path / "b"), *arguments]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_calibration_of_another_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "ck")
    other = make_checkpoint("tiny-qwen3-vl", tmp_path / "other")
    assert run(["calibrate", str(other), "-o", str(tmp_path / "stats"), "--count", "1"]) == 0
    assert run(["export", str(root), "-o", str(tmp_path / "b"), "--calibration", str(tmp_path / "stats")]) == 2
    assert "of another checkpoint" in capsys.readouterr().err
    assert run(["calibrate", str(root), "-o", str(tmp_path / "s2"), "--images", str(tmp_path)]) == 2
    assert "--images needs --questions" in capsys.readouterr().err
