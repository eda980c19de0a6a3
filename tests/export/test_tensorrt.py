"""TensorRT engines, built for real without a GPU: fused attention, caches in place, clear lines for the rest."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from gog_edge.bundle import Bundle
from gog_edge.cli import main
from gog_edge.engines.tensorrt.plan import Library, import_library
from gog_edge.errors import EngineError, UsageError
from gog_edge.export.checkpoint.reader import Checkpoint
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.tensorrt import build
from gog_edge.export.tensorrt.add import add_engines
from gog_edge.export.tensorrt.build import BuildOptions, image_range
from gog_edge.export.tensorrt.layers import engine_report, read_layers, read_scratch
from gog_edge.export.tensorrt.report import MemoryPeak
from gog_edge.export.tensorrt.targets import plans, this_device
from gog_edge.families.layout import windows
from tests.crop.toolchain import need, run
from tests.engines.host_trt import need_rtx

SMALL = BuildOptions(compute_capabilities=("89",), capacity=256, chunk=64, verify=4, image_patches=256)
needs_no_gpu = pytest.mark.skipif(
    Path("/dev/nvidiactl").exists() or Path("/dev/nvgpu").exists(), reason="this machine has a GPU"
)
STAND_IN = Path(__file__).resolve().parents[1] / "engines" / "stand_in_cuda.cpp"
ASK = """
from gog_edge.export.tensorrt.targets import this_device
print(this_device())
try:
    this_device(1)
except Exception as error:
    print(error)
"""


class OldLibrary:
    """A TensorRT that can only build for the GPU that is here, as on a Jetson."""

    __version__ = "10.3.0"


class AheadOfTime:
    """A TensorRT-RTX of these targets."""

    __version__ = "1.7"
    ComputeCapability = Enum("ComputeCapability", ["NONE", "CURRENT", "SM120", "SM75", "SM89"])


RTX = Library("tensorrt-rtx", AheadOfTime)


def test_targets_are_checked_before_anything_is_built() -> None:
    jetson = Library("tensorrt", OldLibrary)
    assert plans(jetson, ()) == ((),)
    with pytest.raises(UsageError, match="leave --sm out"):
        plans(jetson, ("87",))


def test_one_plan_serves_all_devices_but_the_oldest() -> None:
    assert plans(RTX, ()) == (("75",), ("89", "120"))
    assert plans(RTX, ("120", "89", "120")) == (("89", "120"),)
    assert plans(RTX, ("120",)) == (("120",),)
    with pytest.raises(UsageError, match=r"has no sm 87: one of 75, 89, 120 \(Jetson: build on the device"):
        plans(RTX, ("87",))


def test_turing_has_no_4_bit_weights() -> None:
    assert plans(RTX, (), four_bits=True) == (("89", "120"),)
    with pytest.raises(UsageError, match="sm 75 has no 4-bit weights"):
        plans(RTX, ("89", "75"), four_bits=True)


def test_the_driver_names_the_device(tmp_path: Path) -> None:
    """What `--backend tensorrt` records; asked in a process of its own, where the stand-in driver is libcuda."""
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    run(need("g++", "clang++"), *flags, STAND_IN, "-o", tmp_path / "libcuda.so.1", "-ldl")
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["89", "the NVIDIA driver finds no GPU 1 (CUDA error 101); see gog-edge doctor"]


@needs_no_gpu
def test_without_a_driver_plain_tensorrt_says_so() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver here .*gog-edge doctor"):
        this_device()


def test_a_missing_library_says_how_to_get_it() -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(EngineError, match=r"tensorrt is not installed .*JetPack"):
            import_library("tensorrt")
    else:
        pytest.skip("TensorRT is installed here")


def test_the_image_range_follows_the_policy(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    pre = dataclasses.replace(manifest.preprocessing, patch_size=16, merge_size=2, max_pixels=1 << 24)
    large = dataclasses.replace(manifest, preprocessing=pre)
    assert image_range(large) == (4, 3072, 16384)
    assert image_range(large, 100_000) == (4, 3072, 65536)
    small = dataclasses.replace(manifest, preprocessing=dataclasses.replace(pre, max_pixels=100_000))
    assert image_range(small) == (4, 388, 388)
    with pytest.raises(UsageError, match="give at least 4"):
        image_range(large, 3)


def test_sizes_must_fit_the_cache() -> None:
    with pytest.raises(UsageError, match="fit a KV cache of 100"):
        BuildOptions(capacity=100)
    with pytest.raises(UsageError, match="steps of 0 tokens"):
        BuildOptions(verify=0)


LOG = """\
[VERBOSE] Layers:
Name: a_myl0_1, LayerType: kgen, Inputs: [ { Name: write_indices, Dimensions: [1], Datatype: Int64, F: x }, \
{ Name: present.0.key, Dimensions: [1,2,64,8], Strides: [1], Datatype: Half, F: x }], Constants: [], \
Outputs: [ { Name: present.0.key, Dimensions: [1,2,64,8], Strides: [1], Datatype: Half, F: x }], \
TacticName: a_0x1, StreamId: 0, Metadata: [ONNX Layer: layer.0/n_TensorScatter_1]
Name: b_myl0_2, LayerType: kgen, Inputs: [ { Name: present.0.key, Dimensions: [1,2,64,8], Datatype: Half, F: x }], \
Constants: [], Outputs: [ { Name: t, Dimensions: [2,8,64], Datatype: Half, F: x }], TacticName: b_0x2, StreamId: 0, \
Metadata: [ONNX Layer: layer.0/n_Attention_1]
Name: _gemm_mha_v2_myl0_3, LayerType: kgen, Inputs: [ { Name: t, Dimensions: [2,8,64], Datatype: Half, F: x }], \
Constants: [], Outputs: [], TacticName: _gemm_mha_v2_0x3, StreamId: 0, Metadata: [ONNX Layer: layer.0/n_Attention_1]
Name: c_myl0_4, LayerType: runtime_fusion, Inputs: [ { Name: u, Dimensions: [-1,64], Datatype: Half, F: x }], \
Constants: [ { Name: w, Dimensions: [64,128], Datatype: Int4, F: x }, \
{ Name: s, Dimensions: [2,128], Datatype: Half, F: x }], Outputs: [], TacticName: , StreamId: 0, \
Metadata: [ONNX Layer: layer.0/n_DequantizeLinear_1][ONNX Layer: layer.0/n_MatMul_1]
Name: d_myl0_5, LayerType: kgen, Inputs: [], Constants: [ { Name: h, Dimensions: [64,691], Datatype: Int8, F: x }], \
Outputs: [ { Name: v, Dimensions: [64,692], Datatype: Half, F: x }], TacticName: d_0x5, StreamId: 0, \
Metadata: [ONNX Layer: head/n_DequantizeLinear_1]
Name: e_myl0_6, LayerType: gemm, Inputs: [ { Name: v, Dimensions: [64,692], Datatype: Half, F: x }], \
Constants: [ { Name: alpha, Dimensions: [1], Datatype: Float, F: x }], Outputs: [], TacticName: stub, StreamId: 0, \
Metadata: [ONNX Layer: head/n_MatMul_1]
[INFO] done
"""


def test_the_log_tells_what_the_engine_runs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LOG)
    layers = read_layers(log)
    assert [layer.kind for layer in layers] == ["kgen", "kgen", "kgen", "runtime_fusion", "kgen", "gemm"]
    assert engine_report(layers, attentions=1, caches=1, profiles=1) == {
        "attention": "fused",
        "kernels": {"gemm": 1, "kgen": 4, "runtime_fusion": 1},
        "matrices": {"head/n_MatMul_1": "of another layer", "layer.*/n_MatMul_1": "Int4"},
        "unpacked_weights": ["head/n_DequantizeLinear_1: Int8 64 x 691"],
        "kv_in_place": "yes",
        "cache_copies": 2 * 8 * 64 * 2,
    }
    bad = engine_report(layers, attentions=2, caches=4, profiles=1)
    assert bad["attention"] == "decomposed (1 of 2 attention kernels)"
    assert bad["kv_in_place"] == "no (1 of 4 tensors)"


def test_the_memory_of_a_build_is_seen() -> None:
    with MemoryPeak(0.01) as memory:
        block = np.ones(64 << 20, np.uint8)
        time.sleep(0.1)
        del block
    assert memory.peak >= memory.private >= 64 << 20


@pytest.fixture(scope="module")
def rtx() -> Library:
    return need_rtx()


@pytest.mark.tensorrt
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_engines_of_both_families(
    rtx: Library, family: str, precision: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    options = ExportOptions(precision=precision, backend="tensorrt-rtx")  # type: ignore[arg-type]
    plain = export_bundle(tiny_checkpoints[family], tmp_path / "b", options)
    bundle = add_engines(plain, tmp_path / "b", "tensorrt-rtx", SMALL)
    assert [e.graph for e in bundle.manifest.engines] == ["vision", "decoder"]
    for engine in bundle.manifest.engines:
        assert engine.compute_capability == "89"
        assert engine.version == rtx.version
        assert engine.report["seen"] == "engine"
        assert engine.report["attention"] == "fused"
        assert bundle.path(engine.file).stat().st_size == engine.report["plan_bytes"] > 1000
        assert bundle.path(engine.report["log"]).is_file()
        assert engine.report["peak_rss_bytes"] >= engine.report["peak_private_bytes"] > 1 << 20
    decoder = bundle.manifest.engines[1].report
    assert decoder["kv_in_place"] == "yes"
    layers = {kind for node, kind in decoder["matrices"].items() if node.startswith("layer")}
    assert layers == {"Int8" if precision == "int4" else "Half"}  # no block of 32 divides these sizes: int8 instead
    assert not list((tmp_path / "b").glob(".*fixed*"))
    json.dumps(bundle.manifest.engines[0].report)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_the_graphs_of_engines_pass_the_gate_on_the_cpu(
    family: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The very files that engines are built from, three turns on one KV cache, against transformers."""
    pytest.importorskip("transformers")
    from gog_edge.export.parity.gate import gate

    checkpoint = Checkpoint.open(tiny_checkpoints[family])
    options = ExportOptions(precision="fp16", backend="tensorrt-rtx")
    bundle = export_bundle(checkpoint, tmp_path / "b", options, gate=gate(checkpoint))
    report = json.loads((bundle.root / "verify.json").read_text())
    assert report["backend"] == "tensorrt-rtx"
    assert {stage["name"] for stage in report["stages"]} >= {"vision", "prefill", "decode", "greedy"}


@pytest.mark.tensorrt
def test_engines_are_replaced_and_kept(rtx: Library, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A newer plan takes the place of one for the same devices, or for some of them; others stay."""
    options = ExportOptions(precision="int8", backend="tensorrt-rtx")
    bundle = export_bundle(tiny_checkpoints["qwen3_vl"], tmp_path / "b", options)
    for wanted in (("86",), ("120",), ("86", "89")):
        bundle = add_engines(
            bundle, tmp_path / "b", "tensorrt-rtx", dataclasses.replace(SMALL, compute_capabilities=wanted)
        )
    assert [e.compute_capability for e in bundle.manifest.engines] == ["120", "120", "86+89", "86+89"]
    assert len(list((tmp_path / "b" / "engines").iterdir())) == 8
    assert sum(1 for _ in bundle.verify()) == len(bundle.manifest.files)


@pytest.mark.tensorrt
def test_the_command_builds_and_says_what_it_built(
    rtx: Library, tiny_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--backend", "tensorrt-rtx", "--precision", "fp16"]
    sizes = ["--sm", "89, 120", "--capacity", "128", "--image-patches", "64", "--workspace-mb", "256"]
    assert main.run(["export", str(tiny_checkpoints["qwen3_vl"]), "-o", str(tmp_path / "b"), *target, *sizes]) == 0
    said = capsys.readouterr().err
    assert "attention fused, seen in the finished engine" in said
    assert main.run(["inspect", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert f"tensorrt-rtx {rtx.version} for sm 89, 120" in shown
    assert re.search(r"working memory: \S+ \wi?B for reading, \S+ \wi?B for writing", shown)
    assert re.search(r"working memory: \S+ \wi?B for the largest image", shown)
    assert "images of 4 to 64 patches" in shown and "KV cache of 128 tokens written in place: yes" in shown


@needs_no_gpu
@pytest.mark.tensorrt
def test_stripped_plans_need_a_gpu(rtx: Library, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    plain = export_bundle(tiny_checkpoints["qwen3_vl"], tmp_path / "b", ExportOptions(backend="tensorrt-rtx"))
    with pytest.raises(UsageError, match=r"--strip-weights: .* only where a GPU is: there is no NVIDIA driver"):
        add_engines(plain, tmp_path / "b", "tensorrt-rtx", dataclasses.replace(SMALL, strip_weights=True))


@pytest.mark.tensorrt
def test_a_failed_build_leaves_the_old_bundle(
    rtx: Library, tiny_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = export_bundle(tiny_checkpoints["qwen3_vl"], tmp_path / "b", ExportOptions(backend="tensorrt-rtx"))
    backwards = {"s": (9, 5, 1), "last_k": (1, 1, 1), "n": (64, 16, 4)}
    monkeypatch.setattr(build, "_profiles", lambda *_: [backwards])
    with pytest.raises(EngineError, match="takes no profile of sizes"):
        add_engines(old, tmp_path / "b", "tensorrt-rtx", SMALL)
    assert Bundle.open(tmp_path / "b").fingerprint == old.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_ort_graphs_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs portable graphs"):
        add_engines(Bundle.open(tiny_bundle), tmp_path / "b", "tensorrt-rtx", SMALL)


def test_an_image_has_at_most_a_window_for_a_side_of_tokens() -> None:
    """The vision profile's number of windows, against every shape of small images and long strips."""
    for rows in range(1, 26):
        for columns in (*range(1, 26), 63, 64, 257):
            for high, wide in ((rows, columns), (columns, rows)):
                count = len(windows(2 * high, 2 * wide, 2, 4).gather)
                assert count <= -(-high * wide // 4), (high, wide)


def test_working_memory_is_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        "[INFO] a\n[INFO] Total Activation Memory: 20908032 bytes\n[INFO] Total Activation Memory: 7 bytes\n"
    )
    assert read_scratch(log) == [20908032, 7]
    log.write_text("nothing\n")
    assert read_scratch(log) == []
