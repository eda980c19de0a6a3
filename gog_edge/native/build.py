"""Compile a C++ source of the package at first use, keep it in the user's cache, load it with ctypes.

    source = Path(__file__).with_name("crop.cpp")
    library = load_library("crop", [source], fallback="the numpy crop kernel is used")
    if library is not None:
        crop = library.function("gog_crop", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)

The file in the cache is named after the sources (and the headers beside them), the compiler flags, the CPU
and the compiler; a change of any of them builds anew.  It appears by an atomic rename under a file lock, so
two processes that start together compile once and a killed build leaves nothing that could be loaded.  Its
hash lies beside it: one that is damaged, or that another user can have written, is built anew.  A build made
on the same CPU with the same sources is used even if the compiler has gone since (a container image can be
warmed and the compiler removed).  Where the cache can't be used, a process compiles for itself alone.

Environment: GOG_EDGE_NO_NATIVE=1 switches native code off; GOG_EDGE_CACHE names the cache directory
(default $XDG_CACHE_HOME/gog-edge, else ~/.cache/gog-edge); CXX names the compiler.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from gog_edge.disk import leftovers, paths
from gog_edge.disk.files import ours, remove_sealed, seal, seal_of, trusted, write_whole
from gog_edge.native.toolchain import Toolchain, cpu_identity, find_toolchain

log = logging.getLogger("gog_edge.native")

BASE_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")
_COMPILE_LIMIT_S = 600
_HEADERS = ("*.h", "*.hpp", "*.inc")
_AT_A_PLACE = re.compile(r":\d+:\d+: error: ")
_PASSING = re.compile(r"no space left|memory|killed|resource|quota|too many open|fatal error|i/o error", re.IGNORECASE)


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


class _WrongSourceError(_Unavailable):
    """The compiler refuses the source, and will again."""


_statuses: dict[str, NativeStatus] = {}
_guard = threading.Lock()
_ours_alone = contextlib.ExitStack()  # folders of libraries that were compiled for this process
atexit.register(_ours_alone.close)


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
        library, built_s = _find_or_build(name, sources, flags)
        return NativeStatus(name, library, None, built_s)
    except _Unavailable as error:
        problem, _, mend = str(error).partition("; ")
        return NativeStatus(name, None, f"{problem}: {fallback}" + (f"; {mend}" if mend else ""))


def _find_or_build(name: str, sources: list[Path], flags: tuple[str, ...]) -> tuple[NativeLibrary, float | None]:
    """The library for these sources on this machine, compiled now (in so many seconds) if the cache lacks it."""
    if sys.platform == "win32":
        raise _Unavailable("native kernels are built on Linux and macOS only")
    stem = f"{name}-{_source_digest(sources, flags)}-{cpu_identity()[:12]}"
    toolchain = find_toolchain()
    try:
        return _from_cache(name, stem, toolchain, sources, flags)
    except OSError as e:  # read-only, full, somebody else's, or of a file system from which nothing may run
        if toolchain is None:
            raise _no_compiler() from e
        log.warning("%s: compiled for this process alone, as the cache can't be used (%s); set GOG_EDGE_CACHE", name, e)
    try:
        scratch = leftovers.scratch_folder(Path(tempfile.gettempdir()) / "gog-edge-native", mode=0o700)
        target = _ours_alone.enter_context(scratch) / f"{stem}.so"
        took = _compile(toolchain, sources, flags, target)
        library = _open(name, target)
    except OSError as e:
        raise _Unavailable(f"there is no place to compile {name} in ({e}); set GOG_EDGE_CACHE or TMPDIR") from e
    if library is None:
        raise _Unavailable(f"the built library {target.name} does not load; set TMPDIR to a folder whose programs run")
    return library, took


def _from_cache(
    name: str, stem: str, toolchain: Toolchain | None, sources: list[Path], flags: tuple[str, ...]
) -> tuple[NativeLibrary, float | None]:
    """As `_find_or_build`, in the cache.  Raises OSError where it can't be used."""
    directory = _private_directory(cache_directory())
    leftovers.sweep_once(directory)
    if toolchain is None:
        kept = (path for path in sorted(directory.glob(f"{stem}-*.so"), reverse=True) if seal_of(path) is not None)
        opened = (_open(name, path) for path in kept)
        library = next((found for found in opened if found is not None), None)
        if library is None:
            raise _no_compiler()
        return library, None
    target = directory / f"{stem}-{hashlib.sha256(toolchain.identity.encode()).hexdigest()[:8]}.so"
    if seal_of(target) is not None:  # one that has none may be another process's that is about to write it
        library = _open(name, target)
        if library is not None:
            return library, None
    with _locked(directory / f"{target.stem}.lock"):
        library = _open(name, target)
        if library is not None:  # another process was faster
            return library, None
        failed = target.with_suffix(".failed")
        if failed.is_file():
            raise _Unavailable(f"{failed.read_text('utf-8')}; see {failed}, delete it to try again")
        log.info("compiling the %s kernels for this CPU with %s, once", name, toolchain.path.name)
        try:
            took = _compile(toolchain, sources, flags, target)
        except _WrongSourceError as error:
            with contextlib.suppress(OSError):
                write_whole(failed, [str(error).encode()])
            raise
        log.debug("%s: compiled in %.1f s with %s", name, took, toolchain.path.name)
        library = _open(name, target)
    if library is None:
        raise OSError(f"{target} does not load")
    return library, took


def _open(name: str, path: Path) -> NativeLibrary | None:
    """A library that is what the compiler wrote, is this user's, and loads; any other is removed.

    Raises:
        OSError: it can't be read.
    """
    if not path.is_file():
        return None
    try:
        if trusted(path):
            return NativeLibrary(name, path, ctypes.CDLL(str(path)))
        problem = "is damaged, or others can have written it"
    except OSError as e:
        problem = f"does not load ({e})"
    log.warning("the built library %s %s", path.name, problem)
    remove_sealed(path)
    return None


def _compile(toolchain: Toolchain, sources: list[Path], flags: tuple[str, ...], target: Path) -> float:
    """Build `target` and its seal; seconds.

    Raises:
        _Unavailable: the compiler failed; _WrongSourceError where it would fail again.
        OSError: there is no place to write.
    """
    start = time.perf_counter()
    options = (*BASE_FLAGS, *_cpu_flags(), *flags)
    compiler = [str(toolchain.path), *toolchain.arguments]
    with leftovers.scratch_folder(target, mode=0o700) as scratch:
        made = scratch / target.name
        command = [*compiler, *options, "-o", str(made), *map(str, sources)]
        env = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C"}  # what is left of a killed one is swept with it
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_COMPILE_LIMIT_S,
                check=False,
                env=env,
                errors="replace",
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise _Unavailable(f"{toolchain.path.name} could not build {sources[0].name} ({error})") from error
        if done.returncode != 0:
            _fail(toolchain, sources, done.returncode, done.stderr)
        made.chmod(0o700)
        leftovers.sync(made)
        made.replace(target)
    seal(target)
    return time.perf_counter() - start


def _fail(toolchain: Toolchain, sources: list[Path], code: int, said: str) -> NoReturn:
    """Errors at a place in a source are the source's. All else (no memory, no space, a missing header) may pass."""
    errors = [line.strip() for line in said.splitlines() if "error" in line]
    why = errors[0] if errors else f"exit {code}"
    message = f"{toolchain.path.name} failed on {sources[0].name} ({why})".replace("; ", ", ")
    if code > 0 and any(_AT_A_PLACE.search(line) for line in errors) and not _PASSING.search(said):
        raise _WrongSourceError(message)
    raise _Unavailable(message)


def _no_compiler() -> _Unavailable:
    return _Unavailable("no C++ compiler found; install g++")


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
    """Create the cache directory; raises OSError for one another user could plant a library in."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not ours(directory.stat()):
        raise PermissionError(f"{directory} is writable by others; chmod 700 it")
    return directory


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (released by the kernel if this process dies).  Raises OSError."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
