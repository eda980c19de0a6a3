"""The policy that ships, as engines for every device that TensorRT-RTX can build for without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge.engines.tensorrt.plan import find_engine
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.tensorrt.add import add_engines
from gog_edge.export.tensorrt.build import BuildOptions
from gog_edge.export.tensorrt.targets import FIRST_PORTABLE, offered
from tests.engines.host_trt import need_rtx

NANO = Path(__file__).resolve().parents[2] / "models" / "gog-nano"


@pytest.mark.tensorrt
@pytest.mark.parametrize(("precision", "weights"), [("int4", {"Int4", "Int8"}), ("fp16", {"Half"})])
def test_gog_nano_builds_for_all_targets(precision: str, weights: set[str], tmp_path: Path) -> None:
    """One plan for all devices from sm 80 on; Turing gets its own, and none with 4-bit weights."""
    library = need_rtx()
    targets = offered(library)
    portable = [t for t in targets if int(t) >= FIRST_PORTABLE]
    assert targets[0] == "75" and len(portable) >= 5
    options = ExportOptions(precision=precision, backend="tensorrt-rtx")  # type: ignore[arg-type]
    plain = export_bundle(NANO, tmp_path / "b", options)
    bundle = add_engines(plain, tmp_path / "b", "tensorrt-rtx", BuildOptions(capacity=2048, chunk=256))
    wanted = ["+".join(portable)] if precision == "int4" else ["75", "+".join(portable)]
    assert [e.compute_capability for e in bundle.manifest.engines if e.graph == "decoder"] == wanted
    for engine in bundle.manifest.engines:
        report = engine.report
        assert report["seen"] == "engine" and report["attention"] == "fused", engine.file
        if engine.graph == "decoder":
            assert report["kv_in_place"] == "yes"
            assert {kind for node, kind in report["matrices"].items() if node.startswith("layer")} == weights
    for target in portable if precision == "int4" else targets:
        assert target in find_engine(bundle, "vision", "tensorrt-rtx", library.version, target).compute_capability
