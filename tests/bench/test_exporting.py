"""The export scenario: real exports, counted; what goes wrong is said in the export's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge.bench.scenarios.export import export_cells
from gog_edge.cli.main import run
from gog_edge.errors import BenchError


def test_an_export_is_timed_and_weighed(tiny_checkpoints: dict[str, Path]) -> None:
    found = {c.stage: c for c in export_cells(tiny_checkpoints["qwen3_vl"], 2, precisions=("int8",))}
    assert list(found) == ["to int8", "to int8: peak memory", "to int8: bundle"]
    assert all(len(c.samples) == 2 and min(c.samples) > 0 for c in found.values())
    sizes = found["to int8: bundle"].samples
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # the manifest says when it was made


def test_what_is_no_checkpoint_is_said_in_the_exports_words(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"export to int8: .*config\.json"):
        list(export_cells(tmp_path, 1))


def test_the_command_needs_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "export", "--no-roofline"]) == 2
    assert "--checkpoint" in capsys.readouterr().err
