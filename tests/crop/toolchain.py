"""Compilers and emulators for the tests of the native sources; a test skips where its tool is missing."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from gog_edge.crop.native import SOURCES

CHECK = Path(__file__).with_name("native_check.cpp")


def need(*names: str) -> str:
    """The first of `names` on PATH, or skip."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip(f"{names[0]} is not installed")


def need_x86() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("x86-64 instruction sets")


def run(*command: str | Path, limit_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is in the failure message if it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done


def compile_check(compiler: str, target: Path, *flags: str) -> Path:
    """The driver alone, as an object file: most of the compile time, and the same for every code path."""
    run(compiler, "-std=c++17", "-pthread", "-O1", f"-I{SOURCES}", *flags, "-c", CHECK, "-o", target)
    return target


def link_check(compiler: str, driver: Path, target: Path, *flags: str) -> Path:
    """The CPU kernel compiled with `flags`, linked with the driver."""
    run(compiler, "-std=c++17", "-pthread", *flags, SOURCES / "crop_cpu.cpp", driver, "-o", target)
    return target
