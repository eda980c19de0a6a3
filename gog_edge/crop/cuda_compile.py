"""NVRTC at run time, for the device found; the machine code is kept in the user's cache.

Needs no driver and no GPU: a cache can be filled on another machine.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path

from gog_edge.crop.native import SOURCES
from gog_edge.disk.files import ours, read_sealed, write_sealed
from gog_edge.errors import EngineError
from gog_edge.native.build import cache_directory

log = logging.getLogger("gog_edge.crop")

ENTRY = SOURCES / "crop_cuda.cu"
HEADERS = (SOURCES / "crop_grid.h", SOURCES / "crop_core.h")
_OPTIONS = "c++17"


def crop_cubin(arch: str, directory: Path | None = None) -> bytes:
    """Machine code of the crop kernel for `arch` (such as sm_87), compiled or from the cache.

    `directory` is the cache; the default lies beside the native builds.  A cache that can't be used costs a
    compilation per process (about half a second) and one line in the log.

    Raises:
        EngineError: NVRTC is not installed, does not know `arch`, or rejects the source.
    """
    folder = directory if directory is not None else cache_directory().with_name("cuda")
    path = folder / f"crop-{arch}-{_digest(arch)}.cubin"
    try:
        _check_private(folder)
        kept = read_sealed(path)
    except OSError as e:
        log.warning("the kernel cache %s can't be used (%s): the crop kernel is compiled anew", folder, e)
        return compile_crop(arch)[0]
    if kept is not None:
        return kept
    cubin, _ = compile_crop(arch)
    try:
        write_sealed(path, cubin)
    except OSError as e:
        log.warning("the kernel cache %s can't be written (%s)", folder, e)
    return cubin


def _check_private(folder: Path) -> None:
    """Create the cache; raises PermissionError if another user could plant code in it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not ours(folder.stat()):
        raise PermissionError(f"{folder} is writable by others; chmod 700 it")


def _digest(arch: str) -> str:
    """Of everything the machine code depends on."""
    digest = hashlib.sha256(f"{arch}:{_OPTIONS}:{nvrtc_version()}".encode())
    for path in (ENTRY, *HEADERS):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def nvrtc_version() -> str:
    """Of the NVRTC that would compile.  Raises EngineError if there is none."""
    try:
        from cuda.bindings import nvrtc

        error, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as e:  # cuda-pathfinder's DynamicLibNotFoundError is a RuntimeError
        raise EngineError(
            f"the CUDA crop kernel needs NVRTC ({_first_line(e)}); pip install 'gog-edge[gpu]' nvidia-cuda-nvrtc"
        ) from e
    if int(error):
        raise EngineError(f"NVRTC does not tell its version (error {int(error)}); reinstall nvidia-cuda-nvrtc")
    return f"{major}.{minor}"


def compile_crop(arch: str) -> tuple[bytes, str]:
    """(machine code, the assembler's report on registers, spills and shared memory) of the crop kernel for `arch`.

    Raises:
        EngineError: as `crop_cubin`.
    """
    version = nvrtc_version()
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        std=_OPTIONS, arch=arch, include_path=[str(SOURCES)], name=ENTRY.name, ptxas_options="--verbose"
    )
    report = io.StringIO()
    try:
        code = Program(ENTRY.read_text("utf-8"), "c++", options).compile("cubin", logs=report).code
    except Exception as e:  # cuda.core raises its own class, and RuntimeError, for what NVRTC reports
        raise EngineError(f"NVRTC {version} can't compile the crop kernel for {arch}: {_first_line(e)}") from e
    log.info("crop kernel compiled for %s with NVRTC %s", arch, version)
    return bytes(code), report.getvalue()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else type(error).__name__)
