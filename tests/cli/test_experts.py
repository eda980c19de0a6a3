"""A mixture of experts through the command line: exported, inspected, and asked, with every backend that runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gog_edge.bundle import Bundle
from gog_edge.cli.main import run
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.native.graphs import needs_ops
from tests.versions import need_experts


@pytest.mark.parametrize(
    ("name", "backend", "precision"),
    [
        ("tiny-qwen3-vl-moe", "ort", "int8"),
        ("tiny-qwen3-vl-moe", "portable", "int4"),
        pytest.param("tiny-qwen3-vl-moe", "native", "int4", marks=needs_ops),
        pytest.param("tiny-qwen3.5-moe", "native", "int8", marks=needs_ops),
    ],
)
def test_export_and_ask(
    name: str, backend: str, precision: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_experts(backend)
    checkpoint, bundle = make_checkpoint(name, tmp_path / "c"), tmp_path / "b"
    assert run(["export", str(checkpoint), "-o", str(bundle), "--backend", backend, "--precision", precision]) == 0
    manifest = Bundle.open(bundle).manifest
    assert manifest.decoder.experts_used < manifest.decoder.experts
    assert "decoder.experts.data" in manifest.graphs["decoder"].data
    capsys.readouterr()
    assert run(["ask", str(photo), "What is it?", "--bundle", str(bundle), "--dialect", "direct", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] and answer["stop"]
