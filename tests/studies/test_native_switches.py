"""The study of what switches of the native operators cost, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.native.graphs import needs_ops

pytest.importorskip("torch")
pytest.importorskip("transformers")
from studies import native_switches

pytestmark = pytest.mark.parity


@needs_ops
def test_study_of_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = make_checkpoint("tiny-qwen3-vl", tmp_path / "c", 3)
    out = tmp_path / "s.json"
    assert native_switches.main([str(checkpoint), "--count", "1", "-o", str(out)]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(native_switches.variants())
    assert rows["int8 plain"]["feature_error"] == 0
    assert 0 < rows["int8, attention int8"]["feature_error"] < 0.1
    assert rows["int8, KV int8"]["kl_mean"] < rows["int4, blocks of 128"]["kl_mean"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1
    assert native_switches.main([str(tmp_path / "none")]) == 2
