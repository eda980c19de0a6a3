"""Each extra in an environment of its own, from the index: `pip install`, then `gog-edge doctor --json`.

Not run by default, because it downloads gigabytes: GOG_EDGE_EXTRAS=all, or names with commas (`make extras NAMES=…`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from gog_edge.cli.doctor import EXTRAS

ROOT = Path(__file__).parents[1]
WANTED = os.environ.get("GOG_EDGE_EXTRAS", "")
LATER = ("dora", "rerun") if sys.version_info < (3, 11) else ()  # have no wheels for Python 3.10
NAMES = [n for n in EXTRAS if n != "tensorrt" and n not in LATER]  # that installs where nvidia-smi is, nowhere else
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not WANTED, reason="needs GOG_EDGE_EXTRAS (all, or names)")]


def run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=1800, check=False,
        env={**os.environ, "PYTHONPATH": "", **(environment or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


def doctor(python: Path, home: Path) -> dict[str, Any]:
    environment = {"GOG_EDGE_CACHE": str(home / "cache"), "HOME": str(home), "GOG_EDGE_NO_NATIVE": "1"}
    report = json.loads(run(python, "-m", "gog_edge", "doctor", "--json", environment=environment))
    return {check["name"]: check for check in report["checks"]}


@pytest.mark.parametrize("extra", NAMES)
def test_a_clean_environment_for_each_extra(extra: str, tmp_path: Path) -> None:
    if WANTED != "all" and extra not in WANTED.split(","):
        pytest.skip("needs GOG_EDGE_EXTRAS to name it")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", f"{ROOT}[{extra}]")
    checks = doctor(python, tmp_path)
    assert checks[extra]["ok"], checks[extra]
    if extra != "gpu":
        assert "onnxruntime cuda" not in checks
        return
    # Whichever package won, what doctor says mends it, and the libraries of [cuda,cudnn] are found.
    fault = checks["onnxruntime cuda"]
    if "lies over the files" in fault["detail"]:
        run(python, "-m", *fault["mend"].split())
        fault = doctor(python, tmp_path)["onnxruntime cuda"]
    assert fault["ok"] or "no NVIDIA driver" in fault["detail"], fault
    code = "import onnxruntime as o; assert 'CUDAExecutionProvider' in o.get_available_providers()"
    run(python, "-c", code)
