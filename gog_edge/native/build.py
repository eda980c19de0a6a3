"""Compile a C++ source of the package at first use, keep it in the user's cache, load it with ctypes.

    source = Path(__file__).with_name("crop.cpp")
    library = load_library("crop", [source], fallback="the numpy crop kernel is used")
    if library is not None:
        crop = library.function("gog_crop", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)

The file in the cache is named after the sources (and the headers beside them), the compiler flags, the CPU
and the compiler; a change of any of them builds anew.  It appears by an atomic rename under a file lock, so
two processes that start together compile once and a killed build leaves nothing that could be loaded.  A
build made on the same CPU with the same sources is used even if the compiler has gone since (a container
image can be warmed and the compiler removed).

Environment: GOG_EDGE_NO_NATIVE=1 switches native code off; GOG_EDGE_CACHE names the cache directory
(default $XDG_CACHE_HOME/gog-edge, else ~/.cache/gog-edge); CXX names the compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gog_edge import paths
from gog_edge.native.toolchain import Toolchain, cpu_identity, find_toolchain

log = logging.getLogger("gog_edge.native")

BASE_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")
_COMPILE_LIMIT_S = 600
_HEADERS = ("*.h", "*.hpp", "*.inc")


@dataclass(frozen=True)
class NativeLibrary:
    """A loaded shared library; `path` is the file in the cache."""

    name: str
    path: Path
    handle: ctypes.CDLL = field(repr=False, compare=False)

    def function(self, symbol: str, restype: Any, *argtypes: Any) -> Any:
        """The C function `symbol` with its ctypes signature set.  Raises AttributeError if not exported."""
        entry = getattr(self.handle, symbol)
        entry.restype = restype
        entry.argtypes = list(argtypes)
        return entry


@dataclass(frozen=True)
class NativeStatus:
    """Outcome of one load: a library, or why there is none (one line, for the log and `gog-edge doctor`)."""

    name: str
    library: NativeLibrary | None
    reason: str | None
    built_s: float | None = None
    """Seconds the compiler took in this process; None when the cached build was used."""


class _Unavailable(Exception):
    """Why a library is not available; never leaves this module."""


_statuses: dict[str, NativeStatus] = {}
_guard = threading.Lock()


def load_library(
    name: str, sources: Sequence[Path], *, flags: Sequence[str] = (), fallback: str = "a slower path is used"
) -> NativeLibrary | None:
    """The library `name` built from `sources`, or None; remembered for the life of the process.

    `flags` are added to BASE_FLAGS.  `fallback` completes the line that is logged (once) when there is no
    library: "no C++ compiler found: <fallback>; install g++".  Never raises for want of a compiler, a full
    disk or a compile error: ask `native_status(name)` for the reason.
    """
    return load_status(name, sources, flags=flags, fallback=fallback).library


def load_status(
    name: str,
    sources: Sequence[Path],
    *,
    flags: Sequence[str] = (),
    fallback: str = "a slower path is used",
    tell: bool = True,
) -> NativeStatus:
    """Like `load_library`, with the reason; `tell=False` leaves it to the caller to pass that on."""
    with _guard:
        known = _statuses.get(name)
        if known is not None:
            return known
        status = _load(name, [Path(s) for s in sources], tuple(flags), fallback)
        if tell and status.reason is not None:
            log.log(logging.INFO if switched_off() else logging.WARNING, "%s: %s", name, status.reason)
        _statuses[name] = status
        return status


def native_status(name: str) -> NativeStatus | None:
    """The result for `name` in this process; None if nobody asked for it yet."""
    return _statuses.get(name)


def statuses() -> list[NativeStatus]:
    """Every library asked for in this process, by name."""
    return [_statuses[name] for name in sorted(_statuses)]


def switched_off() -> bool:
    """Whether GOG_EDGE_NO_NATIVE forbids native code."""
    return os.environ.get("GOG_EDGE_NO_NATIVE", "").strip() not in ("", "0")


def cache_directory() -> Path:
    """Where builds are kept (not created here)."""
    return paths.cache_directory() / "native"


def _load(name: str, sources: list[Path], flags: tuple[str, ...], fallback: str) -> NativeStatus:
    if switched_off():
        return NativeStatus(name, None, f"native code is switched off by GOG_EDGE_NO_NATIVE: {fallback}")
    try:
        path, built_s = _ensure_built(name, sources, flags)
        return NativeStatus(name, NativeLibrary(name, path, _open(path)), None, built_s)
    except _Unavailable as error:
        problem, _, mend = str(error).partition("; ")
        return NativeStatus(name, None, f"{problem}: {fallback}" + (f"; {mend}" if mend else ""))


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        mend = f"delete {path} to have it built again, or set GOG_EDGE_CACHE to a folder whose programs may run"
        raise _Unavailable(f"the built library {path.name} does not load ({error}); {mend}") from error


def _ensure_built(name: str, sources: list[Path], flags: tuple[str, ...]) -> tuple[Path, float | None]:
    """Path of the shared library for these sources on this machine, compiled now if the cache lacks it."""
    if sys.platform == "win32":
        raise _Unavailable("native kernels are built on Linux and macOS only")
    directory = _private_directory(cache_directory())
    stem = f"{name}-{_source_digest(sources, flags)}-{cpu_identity()[:12]}"
    toolchain = find_toolchain()
    if toolchain is None:
        kept = sorted(directory.glob(f"{stem}-*.so"))
        if kept:
            return kept[-1], None
        raise _Unavailable("no C++ compiler found; install g++")
    target = directory / f"{stem}-{hashlib.sha256(toolchain.identity.encode()).hexdigest()[:8]}.so"
    if target.is_file():
        return target, None
    with _locked(directory / f"{target.stem}.lock"):
        if target.is_file():
            return target, None
        failed = target.with_suffix(".failed")
        if failed.is_file():
            raise _Unavailable(f"{failed.read_text(encoding='utf-8')}; see {failed}, delete it to try again")
        log.info("compiling the %s kernels for this CPU with %s, once", name, toolchain.path.name)
        start = time.perf_counter()
        _compile(toolchain, sources, flags, target, failed)
        took = time.perf_counter() - start
        log.debug("%s: compiled in %.1f s with %s", name, took, toolchain.path.name)
        return target, took


def _compile(toolchain: Toolchain, sources: list[Path], flags: tuple[str, ...], target: Path, failed: Path) -> None:
    scratch = target.with_name(f".{target.stem}-{os.getpid()}.so")  # unique: the caller holds the lock
    options = (*BASE_FLAGS, *_cpu_flags(), *flags)
    command = [str(toolchain.path), *options, "-o", str(scratch), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S, check=False)
        if done.returncode != 0:
            errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
            why = errors[0] if errors else f"exit {done.returncode}"
            message = f"{toolchain.path.name} failed on {sources[0].name} ({why})"
            if done.returncode > 0:  # a signal (killed, out of memory) is not a property of the source
                failed.write_text(message.replace("; ", ", "), encoding="utf-8")
            raise _Unavailable(message)
        scratch.replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        raise _Unavailable(f"{toolchain.path.name} could not build {sources[0].name} ({error})") from error
    finally:
        scratch.unlink(missing_ok=True)


def _cpu_flags() -> tuple[str, ...]:
    """Compile for the CPU at hand; Apple's clang spells it -mcpu on Arm."""
    apple_arm = sys.platform == "darwin" and platform.machine() == "arm64"
    return ("-mcpu=native",) if apple_arm else ("-march=native",)


def _source_digest(sources: list[Path], flags: tuple[str, ...]) -> str:
    """Digest of the sources, the headers in their directories and the flags: what the code depends on."""
    digest = hashlib.sha256(repr((BASE_FLAGS, _cpu_flags(), flags)).encode())
    headers = {header for source in sources for pattern in _HEADERS for header in source.parent.glob(pattern)}
    for path in [*sources, *sorted(headers)]:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _Unavailable(f"the source {path.name} is missing; reinstall gog-edge") from error
        digest.update(f"{path.name}:{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _private_directory(directory: Path) -> Path:
    """Create the cache directory; refuse one another user could plant a library in."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stat = directory.stat()
    except OSError as error:
        raise _Unavailable(f"the cache {directory} can not be used ({error}); set GOG_EDGE_CACHE") from error
    if sys.platform != "win32" and (stat.st_uid not in (os.getuid(), 0) or stat.st_mode & 0o022):
        raise _Unavailable(f"the cache {directory} is writable by others; chmod 700 it or set GOG_EDGE_CACHE")
    return directory


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (released by the kernel if this process dies)."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        problem = f"the cache {path.parent} can not be written ({error}); set GOG_EDGE_CACHE"
        raise _Unavailable(problem) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
