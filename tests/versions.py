"""Tests that need more than the oldest packages that pyproject.toml admits."""

from __future__ import annotations

import onnxruntime
import pytest

from gog_edge.engines.ort.graph import too_old, too_old_for_experts

_REASON = too_old(True, False, onnxruntime.__version__)
_LINEAR = too_old(False, True, onnxruntime.__version__)
needs_portable = pytest.mark.skipif(bool(_REASON), reason=_REASON)


def need_portable() -> None:
    """Skip where ONNX Runtime can't run portable graphs (Python 3.10 ends at its release 1.23)."""
    if _REASON:
        pytest.skip(_REASON)


def need_hybrid(backend: str) -> None:
    """Skip where ONNX Runtime can't run linear attention as this backend writes it."""
    reason = {"ort": _LINEAR, "portable": _REASON}.get(backend, "")
    if reason:
        pytest.skip(reason)


def need_experts(backend: str) -> None:
    """Skip where ONNX Runtime refuses mixtures of experts (QMoE of 1.23 computes them wrong) or portable graphs."""
    if backend == "portable":
        need_portable()
    if backend == "ort" and (reason := too_old_for_experts(onnxruntime.__version__)):
        pytest.skip(reason)
