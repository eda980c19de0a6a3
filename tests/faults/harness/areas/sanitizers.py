"""The C++ sources under AddressSanitizer and UndefinedBehaviorSanitizer, with the drivers of their tests.

They bring their own shapes and seeds: one trial is one build of one driver.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from gog_edge.crop.native import SOURCES
from gog_edge.native.dispatch import SOURCE
from tests.faults.harness.core import Area, Attempt, Exhausted, Unavailable, Wrong
from tests.tools import ROOT

_SANITIZED = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
_OPERATORS, _CROP = ROOT / "tests" / "native" / "check_kernels.cpp", ROOT / "tests" / "crop" / "native_check.cpp"
_CROP_FILES = (str(SOURCES / "crop_cpu.cpp"), str(_CROP), f"-I{SOURCES}")
_BUILDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("operators", (str(_OPERATORS), f"-I{SOURCE.parent}", "-march=native"), ()),
    ("operators, plain CPU", (str(_OPERATORS), f"-I{SOURCE.parent}"), ()),
    ("crop", (*_CROP_FILES, "-march=native"), ("cpu", "300")),
    ("crop, plain CPU", (*_CROP_FILES, "-DGOG_PORTABLE"), ("cpu", "300")),
)


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("needs g++ or clang++")

    def attempt(rng: Random, number: int) -> str:
        if number >= len(_BUILDS):
            raise Exhausted
        name, files, arguments = _BUILDS[number]
        program = folder / f"check{number}"
        command = [compiler, "-std=c++17", "-pthread", "-Wno-psabi", *_SANITIZED, *files, "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise Wrong(f"{name} does not compile: {built.stderr[-500:]}")
        done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Wrong(f"{name}: {(done.stderr + done.stdout)[-1000:]}")
        return f"clean: {name}"

    yield attempt


AREA = Area("sanitizers", "right results and no report", _open, longest_s=900)
