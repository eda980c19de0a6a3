"""The import law, checked in fresh interpreters: what each half may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "gog_edge"
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
    assert not loaded.intersection({"numpy", "onnxruntime", "PIL", "tokenizers", "rich"})


def test_the_exporter_does_not_load_torch() -> None:
    loaded = modules_after("import gog_edge.export.pipeline")
    assert not loaded.intersection({"torch", "transformers"})


ALLOWED = {
    "runtime": set(),
    "export": {"runtime"},  # how an operator wants its weights; the engine that a parity gate compares
    "bench": {"runtime"},
    "evaluation": {"runtime"},
    "serve": {"runtime"},
    "cli": {"runtime", "export", "bench", "evaluation", "serve"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package: str) -> None:
    """Imports inside of functions count as well; docs/adr/0009 says why the arrows point this way."""
    wrong = [
        f"{path.name}:{node.lineno} {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in imported(node)
        if name in ALLOWED and name != package and name not in ALLOWED[package]
    ]
    assert wrong == []
    assert {p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()} == set(ALLOWED)


def imported(node: ast.AST) -> list[str]:
    """The packages directly below gog_edge that an import statement names."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        names = [f"{module}.{alias.name}" for alias in node.names] if module == "gog_edge" else [module]
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        return []
    return [n.split(".")[1] for n in names if n.startswith("gog_edge.")]
