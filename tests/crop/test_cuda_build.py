"""The kernel compiled for real, NVRTC and nvcc for five architectures with its resources read, and the cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from gog_edge.crop import cuda, cuda_compile
from gog_edge.crop.native import SOURCES
from gog_edge.errors import EngineError
from tests.crop.toolchain import need, run

# Per multiprocessor: (threads, registers, shared memory in KiB); CUDA C++ Programming Guide, compute capabilities.
LIMITS = {
    "sm_87": (1536, 65536, 164),
    "sm_89": (1536, 65536, 100),
    "sm_90": (2048, 65536, 228),
    "sm_110": (1536, 65536, 228),
    "sm_120": (1536, 65536, 100),
}


def occupancy(arch: str, registers: int, shared: int) -> float:
    """Resident threads over the most there can be.  Registers are given out in units of 8 a thread (256 a warp)."""
    threads, register_file, shared_kib = LIMITS[arch]
    by_registers = register_file // (-(-registers // 8) * 8 * cuda.BLOCK)
    by_shared = shared_kib * 1024 // (shared + 1024)  # 1 KiB a block is the system's own
    return min(threads // cuda.BLOCK, by_registers, by_shared) * cuda.BLOCK / threads


@pytest.fixture
def nvrtc() -> str:
    pytest.importorskip("cuda.core")
    try:
        return cuda_compile.nvrtc_version()
    except EngineError as error:
        pytest.skip(str(error))


def check_resources(arch: str, report: str) -> None:
    """What the assembler says: nothing spilled, and at least half of the threads resident."""
    stores, loads = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)[0]
    registers = int(re.findall(r"Used (\d+) registers", report)[0])
    shared = int(re.findall(r"(\d+) bytes smem", report)[0])
    assert (stores, loads) == ("0", "0"), report
    assert "0 bytes stack frame" in report
    assert registers <= 64 and shared == 6144
    assert occupancy(arch, registers, shared) >= 0.5


@pytest.mark.parametrize("arch", LIMITS)
def test_nvrtc_compiles_without_spills(arch: str, nvrtc: str) -> None:
    code, report = cuda_compile.compile_crop(arch)
    assert code[:4] == b"\x7fELF" and b"gog_crop" in code
    check_resources(arch, report)


@pytest.mark.parametrize("arch", ["sm_87", "sm_120"])
def test_nvcc_compiles_without_spills(arch: str, tmp_path: Path) -> None:
    """The other compiler, with every warning an error."""
    nvcc = need("nvcc")
    command = (nvcc, "-std=c++17", "-cubin", f"-arch={arch}", "-Xptxas", "-v", "-Werror", "all-warnings")
    check_resources(arch, run(*command, "-o", tmp_path / "crop.cubin", SOURCES / "crop_cuda.cu").stderr)


def test_occupancy_by_calculation() -> None:
    assert occupancy("sm_87", 40, 6144) == 1.0
    assert occupancy("sm_120", 64, 6144) == pytest.approx(2 / 3)
    assert occupancy("sm_90", 40, 40 * 1024) == pytest.approx(5 * 256 / 2048)


def test_nvrtc_compiles_once(nvrtc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = cuda_compile.crop_cubin("sm_87", tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 1 and files[0].name.startswith("crop-sm_87-") and files[0].suffix == ".cubin"
    monkeypatch.setattr(cuda_compile, "compile_crop", lambda arch: pytest.fail("compiled twice"))
    assert cuda_compile.crop_cubin("sm_87", tmp_path) == cubin


def test_the_cache_follows_nvrtc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(cuda_compile, "compile_crop", lambda arch: (made.append(arch), (arch.encode(), ""))[1])
    for version in ("13.0", "13.1", "13.0"):
        monkeypatch.setattr(cuda_compile, "nvrtc_version", lambda version=version: version)
        assert cuda_compile.crop_cubin("sm_87", tmp_path) == b"sm_87"
    assert cuda_compile.crop_cubin("sm_89", tmp_path) == b"sm_89"
    assert made == ["sm_87", "sm_87", "sm_89"]


def test_an_unsafe_or_unwritable_cache_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_compile, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(cuda_compile, "compile_crop", lambda arch: (b"code", ""))
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    with caplog.at_level(logging.WARNING, logger="gog_edge.crop"):
        assert cuda_compile.crop_cubin("sm_87", open_to_all) == b"code"
        assert cuda_compile.crop_cubin("sm_87", not_a_folder) == b"code"
    assert not list(open_to_all.iterdir())
    assert len(caplog.records) == 2 and "writable by others" in caplog.text


def test_an_unknown_architecture_is_one_clear_line(nvrtc: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="sm_11") as caught:
        cuda_compile.crop_cubin("sm_11", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_nvrtc_the_mend_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import builtins

    original = builtins.__import__

    def without_cuda(name: str, *args: object, **options: object) -> object:
        if name.startswith("cuda"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_cuda)
    with pytest.raises(EngineError, match=r"pip install 'gog-edge\[gpu\]'"):
        cuda_compile.crop_cubin("sm_87", tmp_path)


def test_default_cache_lies_beside_the_native_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda_compile, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(cuda_compile, "compile_crop", lambda arch: (b"code", ""))
    cuda_compile.crop_cubin("sm_87")
    assert [p.parent.name for p in tmp_path.rglob("*.cubin")] == ["cuda"]
