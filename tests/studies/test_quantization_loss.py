"""The study of quantisation ranks what it should, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gog_edge.export.synthetic.checkpoint import make_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def test_the_study_ranks_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from studies.quantization_loss import main

    root = make_checkpoint("tiny-qwen2.5-vl", tmp_path / "c", 2, "float32")
    out = tmp_path / "study.json"
    assert main([str(root), "--count", "4", "--set", "recipes", "-o", str(out)]) == 0
    table = capsys.readouterr().out
    data = json.loads(out.read_text())
    rows = {r["name"]: r for r in data["recipes"]}
    assert all(name in table for name in rows)
    losses = [rows[n]["kl_mean"] for n in ("int8", "int4 sym gptq, attention int4", "int4 sym rtn, attention int4")]
    assert losses == sorted(losses)
    assert rows["int4"]["bits"] < rows["int4 sym mse, attention int8"]["bits"] < rows["int8"]["bits"]
    assert data["meta"]["measured_tokens"] == 2 * 96
    assert main([str(root), "--count", "1"]) == 2
    assert "at least 2 conversations" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2
