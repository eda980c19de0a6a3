"""`gog-edge calibrate` and an export that uses it, end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    for name, more in (("mse", []), ("gptq", ["--calibration", str(stats)])):
        out = tmp_path / name
        arguments = ["export", str(root), "-o", str(out), "--ops", "stock", "--verify", *more]
        assert run(arguments) == 0, capsys.readouterr().err
        report = json.loads(Bundle.open(out).read_text("verify.json"))
        stages = {s["name"]: s["metrics"] for s in report["stages"]}
        assert ("graph" in stages) == (name == "mse")  # what calibration decided can't be repeated from the weights
        losses[name] = stages["prefill"]["kl_mean"]
        assert Bundle.open(out).manifest.quantization["mlp"]["method"] == name
    assert losses["gptq"] < 0.7 * losses["mse"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "gptq"], "needs --calibration"),
        (["--method", "rtn", "--precision", "fp16"], "for int4 and int8"),
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
