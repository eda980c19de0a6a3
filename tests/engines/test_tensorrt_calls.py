"""The leaf calls that a GPU would get: names and arguments against the real bindings, on a stand-in CUDA driver."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gog_edge.bundle import Bundle, BundleWriter
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.engines.tensorrt.plan import Library, PlanRequest, TrtPlan, find_engine, import_library
from gog_edge.errors import EngineError, UsageError
from gog_edge.manifest import EngineSpec
from tests.crop.toolchain import need, run
from tests.engines import fake_tensorrt
from tests.engines.host_gpu import HostGpu
from tests.engines.host_trt import REPORT, need_rtx, with_engines
from tests.runtime.fakes import make_bundle
from tests.versions import needs_portable

HERE = Path(__file__).parent
GPU_HERE = Path("/dev/nvidiactl").exists() or Path("/dev/nvgpu").exists()


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("calls"), backend="portable")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that is ours."""
    folder = tmp_path_factory.mktemp("driver")
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    run(need("g++", "clang++"), *flags, HERE / "stand_in_cuda.cpp", "-o", folder / "libcuda.so.1", "-ldl")
    return folder


def with_plans(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with plans for the stand-in TensorRT; the decoder's is stripped of weights."""
    with BundleWriter(folder) as writer:
        for name in bundle.manifest.files:
            if name != "manifest.json":
                (writer.root / name).parent.mkdir(parents=True, exist_ok=True)
                (writer.root / name).write_bytes(bundle.path(name).read_bytes())
        specs = []
        for graph in ("vision", "decoder"):
            report = {**REPORT, "weights": "stripped" if graph == "decoder" else "in the plan"}
            plan = {"bundle": str(bundle.root), "graph": graph, "report": report}
            (writer.root / f"{graph}.engine").write_text(json.dumps(plan))
            specs.append(
                EngineSpec(graph, f"{graph}.engine", "tensorrt-rtx", fake_tensorrt.__version__, "89", report)  # type: ignore[arg-type]
            )
        return writer.commit(dataclasses.replace(bundle.manifest, engines=tuple(specs)))


def test_the_whole_stack_on_a_stand_in_driver(portable: Bundle, driver: Path, tmp_path: Path) -> None:
    """cuda-core and cuda-bindings are the real ones; only libcuda and the TensorRT module are stand-ins."""
    pytest.importorskip("cuda.core")
    bundle = with_plans(portable, tmp_path / "bundle")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(driver),
        "GOG_EDGE_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.trt_stack", str(bundle.root)],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["equal"] and report["tokens"] == 16
    assert report["device"] == "stand-in"
    assert report["replayed"] > 5
    assert report["leaked"] <= 0
    # the stripped plan was refitted in both loads; the second found both plans' compiled kernels
    assert report["events"] == ["refitted", "refitted", "kernels loaded", "kernels loaded"]


def test_every_name_of_the_stand_in_exists_in_tensorrt() -> None:
    real = need_rtx().trt
    for name, fake in inspect.getmembers(fake_tensorrt, inspect.isclass):
        if fake.__module__ != fake_tensorrt.__name__ or name.startswith("_"):
            continue
        assert hasattr(real, name), name
        have = dir(getattr(real, name))
        own = [n for n in vars(fake) if not n.startswith("_")]
        assert [n for n in own if n not in have] == [], name


def test_a_real_plan_reaches_the_driver(tmp_path: Path, portable: Bundle) -> None:
    """Without a GPU TensorRT gets as far as the missing driver, and says so in our one line."""
    need_rtx()
    if GPU_HERE:
        pytest.skip("this machine has a GPU")
    plan = tmp_path / "decoder.engine"
    plan.write_bytes(b"not a plan, but as long as one" * 100)
    request = PlanRequest(plan, portable.path("decoder.onnx"), portable.manifest.graphs["decoder"], REPORT)
    with pytest.raises(
        EngineError, match=r"tensorrt-rtx .* can't load .*decoder.engine on sm 89: .*build it"
    ) as caught:
        TrtPlan.load(import_library("tensorrt-rtx"), request, "89")
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_version_is_one_line(tmp_path: Path, portable: Bundle) -> None:
    plan = tmp_path / "vision.engine"
    plan.write_bytes(b"garbage")
    request = PlanRequest(plan, portable.path("vision.onnx"), portable.manifest.graphs["vision"], REPORT)
    with pytest.raises(EngineError, match="the plan is of another version; build it with this version"):
        TrtPlan.load(Library("tensorrt-rtx", fake_tensorrt), request, "89")


@needs_portable
def test_plain_tensorrt_gets_its_strategy_without_a_runtime_config(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TensorRT has no kernel strategies and no kernel cache; contexts are made with the allocation strategy alone."""
    made: list[Any] = []

    def create(self: Any, strategy: Any) -> Any:
        made.append(strategy)
        config = fake_tensorrt.IRuntimeConfig()
        wanted = strategies.LAZY
        config.dynamic_shapes_kernel_specialization_strategy = wanted
        return fake_tensorrt.IExecutionContext(self, config)

    strategies = fake_tensorrt.DynamicShapesKernelSpecializationStrategy
    spec = portable.manifest.graphs["vision"]
    request = PlanRequest(tmp_path, portable.path(spec.file), spec, REPORT, tmp_path / "kernels")
    plan_of = HostGpu().load(request)
    names = {n: v for n, v in vars(fake_tensorrt).items() if n != "DynamicShapesKernelSpecializationStrategy"}
    library = Library("tensorrt", SimpleNamespace(**names))
    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "create_execution_context", create)
    monkeypatch.delattr(fake_tensorrt.IExecutionContext, "is_stream_capturable")
    engine: Any = fake_tensorrt.ICudaEngine(plan_of)
    plan = TrtPlan(library, request, None, engine, SimpleNamespace(reason=lambda: ""))  # type: ignore[arg-type]
    context = plan.context(0, SimpleNamespace(handle=7), 256, 4096, few_shapes=False)
    assert made == [fake_tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED]
    assert context.capturable(SimpleNamespace(handle=7))
    plan.close()
    assert not (tmp_path / "kernels").exists()


def test_the_engine_of_a_bundle_is_found(portable: Bundle) -> None:
    bundle = with_engines(
        portable, ("tensorrt-rtx", "1.7", "80+86+89"), ("tensorrt-rtx", "1.7", "89"), ("tensorrt", "10.15", "87")
    )
    assert find_engine(bundle, "decoder", "tensorrt-rtx", "1.7", "86").compute_capability == "80+86+89"
    assert find_engine(bundle, "decoder", "tensorrt-rtx", "1.7", "89").compute_capability == "89"  # made for it alone
    assert find_engine(bundle, "vision", "tensorrt", "10.15", "87").graph == "vision"
    with pytest.raises(
        EngineError,
        match=r"has no tensorrt-rtx 1.7 engine of the vision graph for sm 120 \(it has: 1.7 sm 80\+86\+89, 1.7 sm 89\)"
        r": export again with --backend tensorrt-rtx --sm 120",
    ):
        find_engine(bundle, "vision", "tensorrt-rtx", "1.7", "120")
    with pytest.raises(EngineError, match=r"it has: 10.15 sm 87\): .*--backend tensorrt on this device"):
        find_engine(bundle, "vision", "tensorrt", "10.16", "87")
    with pytest.raises(EngineError, match=r"for sm 110 \(it has: 10.15 sm 87\)"):
        find_engine(bundle, "vision", "tensorrt", "10.15", "110")
    with pytest.raises(EngineError, match=r"it has: none"):
        find_engine(portable, "vision", "tensorrt", "10.16", "87")


def test_a_missing_library_says_how_to_get_it(portable: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt is not installed .*JetPack"):
        create_engine("tensorrt", portable)


def test_a_missing_driver_is_one_line(portable: Bundle) -> None:
    need_rtx()
    pytest.importorskip("cuda.core")
    if GPU_HERE:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="no CUDA device 0") as caught:
        create_engine("tensorrt-rtx", portable)
    assert "\n" not in str(caught.value)


def test_wrong_bundles_and_options_are_refused_first(portable: Bundle, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="was exported for ort: export the checkpoint with --backend tensorrt-rtx"):
        create_engine("tensorrt-rtx", bundle)
    with pytest.raises(UsageError, match="takes TrtOptions, not OrtOptions"):
        create_engine("tensorrt-rtx", portable, OrtOptions())


class TestTheHostIsStrict:
    """What would be undefined on a device is an error on the host."""

    def test_freed_and_foreign_memory(self) -> None:
        gpu = HostGpu()
        stream, memory = gpu.stream(), gpu.allocate(64)
        address = memory.address
        memory.close()
        gpu.clear(address, 64, stream)
        with pytest.raises(EngineError, match="are not allocated"):
            gpu.synchronize(stream)
        with pytest.raises(EngineError, match="freed twice"):
            memory.close()

    def test_nothing_happens_before_it_is_waited_for(self) -> None:
        gpu = HostGpu()
        stream, memory = gpu.stream(), gpu.allocate(8)
        source, target = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
        gpu.upload(memory.address, source, stream)
        gpu.download(target, memory.address, stream)
        assert not target.any()
        source[:] = 9  # page-locked memory is read when the copy is done
        gpu.synchronize(stream)
        assert (target == 9).all()

    def test_a_stream_waits_for_another_by_event_only(self) -> None:
        gpu = HostGpu()
        one, two, memory = gpu.stream(), gpu.stream(), gpu.allocate(4)
        first, second = np.zeros(4, np.uint8), np.zeros(4, np.uint8)
        gpu.clear(memory.address, 4, one)
        event = gpu.event(one)
        gpu.download(first, memory.address, two)
        gpu.synchronize(two)
        gpu.wait(event, two)
        gpu.download(second, memory.address, two)
        gpu.synchronize(two)
        assert (first == 0xCD).all() and (second == 0).all()

    def test_captured_work_runs_when_it_is_launched(self) -> None:
        gpu = HostGpu()
        stream, memory = gpu.stream(), gpu.allocate(4)
        target = np.zeros(4, np.uint8)
        gpu.begin_capture(stream)
        gpu.clear(memory.address, 4, stream)
        with pytest.raises(EngineError, match="while it is captured"):
            gpu.synchronize(stream)
        graph = gpu.end_capture(stream)
        with pytest.raises(EngineError, match="does not capture"):
            gpu.end_capture(stream)
        gpu.download(target, memory.address, stream)
        gpu.synchronize(stream)
        assert (target == 0xCD).all()
        gpu.launch(graph, stream)
        gpu.download(target, memory.address, stream)
        gpu.synchronize(stream)
        assert not target.any()

    @needs_portable
    @pytest.mark.parametrize("fault", ["alias", "address", "profile", "align"])
    def test_a_run_with_wrong_bindings(self, portable: Bundle, fault: str) -> None:
        gpu = HostGpu()
        spec = portable.manifest.graphs["decoder"]
        plan = gpu.load(PlanRequest(portable.root, portable.path(spec.file), spec, REPORT))
        stream, memory = gpu.stream(), gpu.allocate(1 << 20)
        context: Any = plan.context(1, stream, memory.address, 64, few_shapes=True)
        if fault == "profile":
            with pytest.raises(EngineError, match="outside of profile 1"):
                context.shape("inputs_embeds", (1, 5, portable.manifest.decoder.hidden))
            return
        if fault == "align":
            with pytest.raises(EngineError, match="not a multiple of 256"):
                context.bind("logits", memory.address + 8)
            return
        for tensor in spec.inputs:
            context.shape(tensor.name, plan.limits(tensor.name, 1)[0])
        for tensor in (*spec.inputs, *spec.outputs):
            if fault != "address" or tensor.name != "logits":
                shift = 256 * (fault == "alias" and tensor.name == "present.0.key")
                context.bind(tensor.name, memory.address + shift)
        with pytest.raises(EngineError, match="must lie where" if fault == "alias" else "address of logits"):
            context.enqueue(stream)
