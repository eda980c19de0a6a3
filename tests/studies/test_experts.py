"""The study of experts runs: a small layer, and a small bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.shapes import SHAPES
from studies import experts
from tests.native.graphs import needs_ops

pytestmark = needs_ops


def test_a_layer() -> None:
    shape = replace(SHAPES["qwen3-vl-30b-a3b"], experts=10, top=3, hidden=128, intermediate=64)
    found = experts.layer(shape, 1)
    assert len(found) == 9 and all(rate.endswith(("GB/s", "GOP/s")) for _, _, rate in found)


def test_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = make_checkpoint("tiny-qwen3-vl-moe", tmp_path / "c")
    export_bundle(checkpoint, tmp_path / "b", ExportOptions(backend="native"))
    experts.main(["--bundle", str(tmp_path / "b"), "--steps", "2"])
    out = capsys.readouterr().out
    assert "512 tokens read" in out and "2 tokens written" in out and "GiB mapped" in out
