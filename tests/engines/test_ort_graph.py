"""Which ONNX Runtime a bundle needs, and which devices it knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gog_edge.bundle import Bundle
from gog_edge.engines.ort.engine import create
from gog_edge.engines.ort.graph import too_old, wrong_experts
from gog_edge.errors import EngineError
from tests.test_bundle import MANIFEST


def test_only_portable_graphs_need_a_newer_onnxruntime() -> None:
    assert too_old(False, False, "1.23.0") == ""
    assert "1.25 or later" in too_old(True, False, "1.24.4")
    assert too_old(True, False, "1.25.0") == ""
    assert too_old(True, False, "1.100.2rc1") == ""
    assert too_old(False, True, "1.30.0") == too_old(True, True, "1.25.0") == ""
    assert "1.30 or later" in too_old(False, True, "1.29.0")


@pytest.mark.parametrize(("backend", "wrong"), [("ort", True), ("native", False), ("portable", False)])
def test_stock_experts_need_a_release_that_computes_them_right(backend: str, wrong: bool) -> None:
    dense = replace(MANIFEST, backend=backend)  # type: ignore[arg-type]
    mixture = replace(dense, decoder=replace(dense.decoder, experts=8, experts_used=2))
    assert wrong_experts(dense, "1.23.2") is None and wrong_experts(mixture, "1.24.1") is None
    found = wrong_experts(mixture, "1.23.2")
    assert (found is not None and "need onnxruntime 1.24 or later" in found) == wrong


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "nv-tensorrt-rtx"])
def test_native_operators_are_for_a_cpu(device: str) -> None:
    """They would write the keys and values of a GPU's cache into a copy of it."""
    bundle = Bundle(Path("mine.bundle"), replace(MANIFEST, backend="native"))
    with pytest.raises(EngineError, match=r"mine\.bundle was exported for native.*--backend cuda"):
        create(bundle, device=device)
