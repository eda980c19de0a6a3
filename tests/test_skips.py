"""CI does not pass while tests that it should run are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = "from tests import skips\ndef pytest_configure(config): skips.register(config)\n"


@pytest.mark.parametrize(
    ("body", "ci", "code"),
    [
        ("def test_it():\n    pytest.importorskip('no_such_module')", "1", 1),
        ("pytest.importorskip('no_such_module')", "1", 1),
        ("def test_it():\n    pytest.skip('this machine has a GPU')", "1", 0),
        ("def test_it():\n    pytest.importorskip('no_such_module')", "", 0),
    ],
    ids=["missing extra", "missing for a whole file", "listed", "outside CI"],
)
def test_an_unlisted_skip_fails_in_ci(tmp_path: Path, body: str, ci: str, code: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_sample.py").write_text(f"import pytest\n\n\ndef test_other():\n    pass\n\n\n{body}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GOG_EDGE_CI": ci},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("NOT RUN" in done.stdout) == (code == 1)
