"""The import law, checked in fresh interpreters: what each half may load."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "gog_edge.export")

RUNTIME_MODULES = (
    "gog_edge",
    "gog_edge.bundle",
    "gog_edge.runtime.agent",
    "gog_edge.runtime.session",
    "gog_edge.runtime.dialects",
    "gog_edge.runtime.search",
    "gog_edge.runtime.crop",
    "gog_edge.evaluation",
    "gog_edge.bench",
    "gog_edge.cli.main",
    "gog_edge.cli.ask",
    "gog_edge.cli.doctor",
)


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", RUNTIME_MODULES)
def test_runtime_half_never_loads_torch_or_the_exporter(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert module in loaded
    assert not loaded.intersection(HEAVY)


def test_importing_the_package_is_cheap() -> None:
    loaded = modules_after("import gog_edge")
    assert not loaded.intersection({"numpy", "onnxruntime", "PIL", "tokenizers", "httpx", "rich"})


def test_the_exporter_does_not_load_torch() -> None:
    loaded = modules_after("import gog_edge.export.pipeline")
    assert not loaded.intersection({"torch", "transformers"})
