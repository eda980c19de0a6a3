"""The C++ kernels on their own: under sanitizers, without special instructions, and on emulated Arm CPUs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gog_edge.native.dispatch import SOURCE

CHECK = Path(__file__).with_name("check_kernels.cpp")
CPU_FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def _run(tmp_path: Path, compiler: str, flags: list[str], emulator: list[str]) -> str:
    for tool in (compiler, *emulator[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = tmp_path / "check"
    command = [compiler, "-std=c++17", "-pthread", "-Wall", "-Wextra", "-Wno-psabi", *flags]
    built = subprocess.run(
        [*command, "-I", str(SOURCE.parent), str(CHECK), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["-O1", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        ["-O1"],  # whatever the architecture guarantees, nothing more
    ],
    ids=["sanitized", "baseline"],
)
def test_this_machine(tmp_path: Path, flags: list[str]) -> None:
    _run(tmp_path, "g++", flags, [])


@pytest.mark.skipif("avx2" not in CPU_FLAGS, reason="no AVX2 here")
def test_avx2_only(tmp_path: Path) -> None:
    assert _run(tmp_path, "g++", ["-O1", "-march=haswell"], []).splitlines()[0] == "avx2"


@pytest.mark.parametrize(
    "march, isa",
    [("armv8-a", "neon"), ("armv8.2-a+dotprod", "neon-dotprod"), ("armv8.2-a+dotprod+i8mm", "neon-i8mm")],
)
def test_arm(tmp_path: Path, march: str, isa: str) -> None:
    out = _run(tmp_path, CROSS, ["-O1", "-static", f"-march={march}"], [EMULATOR, "-cpu", "max"])
    assert out.splitlines()[0] == isa
