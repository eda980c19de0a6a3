"""The policy that ships, as int4 engines for every device that TensorRT-RTX can build for without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge.export.engines import add_engines
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.tensorrt import FIRST_WITH_INT4, BuildOptions, load_library

NANO = Path(__file__).resolve().parents[2] / "models" / "gog-nano"


@pytest.mark.slow
@pytest.mark.tensorrt
def test_gog_nano_builds_for_all_targets(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    targets = [t for t in load_library("tensorrt-rtx").targets() if int(t) >= FIRST_WITH_INT4]
    assert len(targets) >= 5
    plain = export_bundle(NANO, tmp_path / "b", ExportOptions(precision="int4", target="tensorrt-rtx"))
    options = BuildOptions(capacity=2048, chunk=256, image_patches=(16, 432, 1024))
    bundle = add_engines(plain, tmp_path / "b", "tensorrt-rtx", options)
    assert sorted({e.compute_capability for e in bundle.manifest.engines}, key=int) == targets
    for engine in bundle.manifest.engines:
        assert engine.report["attention"] == "fused", engine.file
    decoders = [e for e in bundle.manifest.engines if e.graph == "decoder"]
    assert all(e.report["kv_in_place"] == "yes" for e in decoders)
    assert bundle.manifest.quantization["attention"]["bits"] == 4
