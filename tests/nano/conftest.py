"""The recipe of gog-nano lies in models/gog-nano, beside the package: put it on the path. It needs torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "models" / "gog-nano"
sys.path.insert(0, str(ROOT))
pytest.importorskip("torch")


@pytest.fixture(scope="session")
def nano_dir() -> Path:
    return ROOT
