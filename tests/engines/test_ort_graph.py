"""What is said where ONNX Runtime is too old."""

from __future__ import annotations

from gog_edge.engines.ort.graph import too_old


def test_only_portable_graphs_need_a_newer_onnxruntime() -> None:
    assert too_old(False, False, "1.23.0") == ""
    assert "1.25 or later" in too_old(True, False, "1.24.4")
    assert too_old(True, False, "1.25.0") == ""
    assert too_old(True, False, "1.100.2rc1") == ""
    assert too_old(False, True, "1.30.0") == too_old(True, True, "1.25.0") == ""
    assert "1.30 or later" in too_old(False, True, "1.29.0")
