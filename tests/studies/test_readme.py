"""Every study starts, has its result beside it and a row in the table, and none is in the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "studies"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text("utf-8"))


def test_the_table_names_them_all() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"`python -m studies\.(\w+)", page)) == STUDIES
    assert sorted(re.findall(r"\]\((\w+)\.md\)", page)) == STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_starts_and_has_a_result(name: str) -> None:
    if "gog_edge.export.parity" in (FOLDER / f"{name}.py").read_text("utf-8"):
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-m", f"studies.{name}", "--help"], cwd=FOLDER.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr
    assert f"python -m studies.{name}" in (FOLDER / f"{name}.md").read_text("utf-8")


def test_the_package_does_without_them() -> None:
    package = FOLDER.parent / "gog_edge"
    assert not [
        p.name for p in package.rglob("*.py") if re.search(r"^\s*(from|import) studies\b", p.read_text("utf-8"), re.M)
    ]
