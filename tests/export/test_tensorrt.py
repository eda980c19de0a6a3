"""TensorRT engines, built for real without a GPU: fused attention, caches in place, clear lines for the rest."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from gog_edge.bundle import Bundle
from gog_edge.errors import EngineError, UsageError
from gog_edge.export.engines import add_engines
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.tensorrt import BuildOptions, Library, check_targets, load_library

SMALL = BuildOptions(compute_capabilities=("89",), capacity=256, chunk=64, verify=4, image_patches=(16, 64, 256))


class OldLibrary:
    """A TensorRT that can only build for the GPU that is here, as on a Jetson."""

    __version__ = "10.3.0"


def test_targets_are_checked_before_anything_is_built() -> None:
    jetson = Library("tensorrt", OldLibrary)
    assert check_targets(jetson, ()) == ("current",)
    with pytest.raises(UsageError, match="leave --sm out"):
        check_targets(jetson, ("87",))


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    with pytest.raises(EngineError, match=r"tensorrt is not installed .*JetPack"):
        load_library("tensorrt")


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx")
    return load_library("tensorrt-rtx")


@pytest.mark.tensorrt
def test_a_jetson_target_gets_a_hint(rtx: Library) -> None:
    with pytest.raises(UsageError, match=r"has no sm 87: one of .*build on the device"):
        check_targets(rtx, ("87",))


@pytest.mark.tensorrt
def test_turing_has_no_4_bit_weights(rtx: Library) -> None:
    assert "75" in check_targets(rtx, ())
    assert "75" not in check_targets(rtx, (), four_bits=True)
    with pytest.raises(UsageError, match="sm 75 has no 4-bit weights"):
        check_targets(rtx, ("89", "75"), four_bits=True)


@pytest.mark.tensorrt
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_engines_of_both_families(
    rtx: Library, family: str, precision: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    options = ExportOptions(precision=precision, target="tensorrt-rtx")  # type: ignore[arg-type]
    plain = export_bundle(tiny_checkpoints[family], tmp_path / "b", options)
    bundle = add_engines(plain, tmp_path / "b", "tensorrt-rtx", SMALL)
    assert [e.graph for e in bundle.manifest.engines] == ["vision", "decoder"]
    for engine in bundle.manifest.engines:
        assert engine.compute_capability == "89"
        assert engine.version == rtx.version
        assert engine.report["attention"] == "fused"
        assert bundle.path(engine.file).stat().st_size == engine.report["plan_bytes"] > 1000
        assert bundle.path(engine.report["log"]).is_file()
    assert bundle.manifest.engines[1].report["kv_in_place"] == "yes"
    assert not list((tmp_path / "b").glob(".*fixed*"))
    json.dumps(bundle.manifest.engines[0].report)


@pytest.mark.tensorrt
def test_a_failed_build_leaves_the_old_bundle(rtx: Library, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    old = export_bundle(tiny_checkpoints["qwen3_vl"], tmp_path / "b", ExportOptions(target="tensorrt-rtx"))
    broken = dataclasses.replace(SMALL, image_patches=(256, 64, 16))
    with pytest.raises((EngineError, RuntimeError)):
        add_engines(old, tmp_path / "b", "tensorrt-rtx", broken)
    assert Bundle.open(tmp_path / "b").fingerprint == old.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_ort_graphs_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs graphs of the standard flavour"):
        add_engines(Bundle.open(tiny_bundle), tmp_path / "b", "tensorrt-rtx", SMALL)
