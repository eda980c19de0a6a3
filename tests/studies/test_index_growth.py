"""An index that grows, small and seeded, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from studies.index_growth import command as grow


def test_growth_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        grow, ["--sizes", "1000,2000", "--dim", "32", "--searches", "10", "--folder", str(tmp_path / "g"), "--keep"]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output.splitlines()[-1])["rows"]
    assert [r["entries"] for r in rows] == [1000, 2000]
    assert all(r["image_recall@1"] >= 0.9 and r["text_recall@5"] >= 0.9 for r in rows)
    again = CliRunner().invoke(grow, ["--reuse", "--dim", "32", "--searches", "5", "--folder", str(tmp_path / "g")])
    assert json.loads(again.output.splitlines()[-1])["rows"][0]["entries"] == 2000
    assert not (tmp_path / "g").exists()
    assert CliRunner().invoke(grow, ["--sizes", "1500", "--folder", str(tmp_path / "g")]).exit_code == 2
