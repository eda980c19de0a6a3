"""What can be known of ONNX Runtime on a GPU without one: why it does not start, and how its cache lies there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from gog_edge.cli import doctor
from gog_edge.engines.ort import gpu
from gog_edge.engines.ort.options import DEVICES, OrtOptions, find_device, providers
from gog_edge.errors import EngineError
from tests.crop.toolchain import need, run

HERE = Path(__file__).parent
CUDA = "CUDAExecutionProvider"
STAND_IN = ("-std=c++17", "-O1", "-shared", "-fPIC")


def have(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], provider: bool, cuda: str) -> None:
    monkeypatch.setattr(gpu, "installed", lambda: packages)
    names = [CUDA] * provider + ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "cuda_version", cuda, raising=False)


def test_the_cpu_package_over_the_other_is_mended_by_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, False, "")
    mend = "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1"
    with pytest.raises(EngineError) as caught:
        find_device("cuda")
    line = f"onnxruntime 1.32.0 lies over the files of onnxruntime-gpu 1.31.1: {mend}"
    assert str(caught.value) == line
    checks = {c.name: c for c in doctor.run_checks()}
    assert checks["onnxruntime cuda"].ok is False and checks["onnxruntime cuda"].mend == mend


def test_without_the_gpu_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, {"onnxruntime": "1.32.0"}, False, "")
    monkeypatch.setattr(gpu.platform, "machine", lambda: "x86_64")
    with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider: pip install 'gog-edge\[gpu\]' && "):
        find_device("cuda")
    monkeypatch.setattr(gpu.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(gpu.sys, "version_info", (3, 10, 12))
    with pytest.raises(EngineError, match=r"no wheel for Python 3\.10 on Arm.*JetPack 6.*jp6/cu126"):
        find_device("cuda")
    assert "onnxruntime cuda" not in {c.name for c in doctor.run_checks()}


def test_a_gpu_package_without_tensorrt_is_not_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, {"onnxruntime-gpu": "1.31.1"}, True, "13.0")
    with pytest.raises(EngineError, match="has no NvTensorRTRTXExecutionProvider: its wheel was built without it"):
        find_device("nv-tensorrt-rtx")


class TestLibraries:
    @pytest.fixture
    def wheel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder onnxruntime/ whose CUDA provider needs two libraries, as a linker wrote it down."""
        compiler, capi = need("g++", "clang++"), tmp_path / "onnxruntime" / "capi"
        capi.mkdir(parents=True)
        empty = tmp_path / "empty.cpp"
        empty.write_text("int nothing() { return 0; }\n")
        libraries = []
        for name in ("libcublasLt.so.99", "libcudart.so.99"):
            run(compiler, *STAND_IN, f"-Wl,-soname,{name}", empty, "-o", tmp_path / name)
            libraries.append(tmp_path / name)
        provider = capi / "libonnxruntime_providers_cuda.so"
        run(compiler, *STAND_IN, "-Wl,--no-as-needed", empty, *libraries, "-o", provider)
        monkeypatch.setattr(onnxruntime, "__file__", str(capi.parent / "__init__.py"))
        monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **k: None, raising=False)
        return tmp_path

    def test_what_is_missing_is_named(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "_driver_version", lambda: 13010)
        (fault,) = gpu.faults(CUDA)
        assert fault.what == "libonnxruntime_providers_cuda.so needs libcublasLt.so.99, libcudart.so.99"
        assert fault.mend == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        monkeypatch.setattr(gpu, "_loads", lambda name: True)
        assert gpu.faults(CUDA) == []

    def test_a_jetson_gets_them_from_jetpack(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "_driver_version", lambda: 13010)
        monkeypatch.setattr(gpu, "_JETSON", wheel)
        assert gpu.faults(CUDA)[0].mend == "sudo apt-get install nvidia-jetpack"

    @pytest.mark.parametrize(
        ("driver", "what", "mend"),
        [
            (None, "no NVIDIA driver", "install NVIDIA's driver"),
            (12080, "knows CUDA 12.8, onnxruntime-gpu is built for 13.0", r"or pip install .*\[cuda,cudnn\]<1.27'"),
            (11080, "knows CUDA 11.8", "^update the driver$"),
        ],
    )
    def test_the_driver(
        self, wheel: Path, monkeypatch: pytest.MonkeyPatch, driver: int | None, what: str, mend: str
    ) -> None:
        monkeypatch.setattr(gpu, "_driver_version", lambda: driver)
        monkeypatch.setattr(gpu, "_loads", lambda name: True)
        (fault,) = gpu.faults(CUDA)
        assert what in fault.what
        assert re.search(mend, fault.mend), fault.mend

    def test_all_of_it_is_in_doctor(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
        monkeypatch.setattr(gpu, "_driver_version", lambda: None)
        found = [c for c in doctor.run_checks() if c.name == "onnxruntime cuda"]
        assert [c.ok for c in found] == [False, False] and "libcublasLt.so.99" in found[1].detail

    def test_other_files_need_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "x.so").write_bytes(b"MZ" + bytes(200))
        assert gpu.needed(tmp_path / "x.so") == []


def test_libraries_are_loaded_before_a_session_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def preload_dlls(**options: Any) -> None:
        calls.append(options)
        sys.stdout.write("Failed to load libcublasLt.so.13")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    monkeypatch.setattr(onnxruntime, "cuda_version", "", raising=False)
    gpu.preload()
    assert calls == []  # a CPU wheel has nothing to load
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    gpu.preload()
    assert calls == [{"directory": ""}] and capsys.readouterr().out == ""


def test_provider_options() -> None:
    options = OrtOptions(device_id=1, provider_options={"arena_extend_strategy": "kNextPowerOfTwo"})
    (name, settings), fallback = providers(DEVICES["cuda"], options)
    assert (name, fallback) == (CUDA, "CPUExecutionProvider")
    assert settings["device_id"] == "1" and settings["arena_extend_strategy"] == "kNextPowerOfTwo"
    assert settings["cudnn_conv_use_max_workspace"] == "0"
    assert providers(DEVICES["cpu"], OrtOptions()) == [("CPUExecutionProvider", {})]


def test_a_cache_on_the_device_grows_there(tmp_path: Path) -> None:
    """cuda-core and cuda-bindings are the real ones, libcuda is a stand-in that counts copies and checks pitches."""
    pytest.importorskip("cuda.core")
    run(need("g++", "clang++"), *STAND_IN, "-Wl,-soname,libcuda.so.1", HERE / "stand_in_cuda.cpp",
        "-o", tmp_path / "libcuda.so.1", "-ldl")  # fmt: skip
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.ort_device"],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = SimpleNamespace(**json.loads(done.stdout.splitlines()[-1]))
    assert report.capacity == 128 and report.kept and report.zero
    assert report.growth == [0, 0, 2]  # host to device, device to host, within the device
    assert report.in_place and report.device == ["cuda", 0] and report.logits == "cpu"
    assert report.buffers == 2  # the old ones are freed
