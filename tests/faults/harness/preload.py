"""Processes that die at a chosen call of the system: `die.c`, compiled here, and forks that arm it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults.harness.core import Unavailable, Wrong

_SOURCE = Path(__file__).with_name("die.c")
_MARK = "GOG_FAULTS_PRELOADED"


def ensure(folder: Path) -> None:
    """Begin this process again with the library loaded, unless it is.

    Raises:
        Unavailable: there is no C compiler, or this is no Linux.
    """
    if os.environ.get(_MARK):
        return
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise Unavailable("needs Linux and a C compiler")
    library = folder / "die.so"
    subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", library, _SOURCE, "-ldl"], check=True)
    before = [p for p in (os.environ.get("LD_PRELOAD"),) if p]
    environment = {**os.environ, "LD_PRELOAD": ":".join([str(library), *before]), _MARK: str(library)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def steps(work: Callable[[], object], below: Path) -> int:
    """How many calls of `work` change files below a folder; run in a fork."""
    reading, writing = os.pipe()
    library = ctypes.CDLL(os.environ[_MARK])

    def counted() -> None:
        library.gog_arm(os.fsencode(below), ctypes.c_long(-1), 0)
        work()
        os.write(writing, str(library.gog_steps()).encode())

    status = _in_fork(counted)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    if status != 0 or not said:
        raise Wrong(f"the work itself fails (status {status})")
    return int(said)


def killed(work: Callable[[], object], below: Path, step: int, *, torn: bool) -> bool:
    """Run `work` in a fork that dies at call `step`, in the middle of it if that is a write and `torn`; whether it did.

    Raises:
        Wrong: it failed otherwise.
    """
    library = ctypes.CDLL(os.environ[_MARK])

    def armed() -> None:
        library.gog_arm(os.fsencode(below), ctypes.c_long(step), int(torn))
        work()

    status = _in_fork(armed)
    if status == 0:
        return False
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise Wrong(f"the work failed instead of dying at call {step} (status {status})")
    return True


def in_fork(check: Callable[[], object]) -> None:
    """Run a check as a process that starts now.

    Raises:
        Wrong: what it raised, or how it ended.
    """
    reading, writing = os.pipe()

    def told() -> None:
        try:
            check()
        except BaseException as e:
            traceback.print_exc()
            os.write(writing, f"{type(e).__name__}: {e}".encode("utf-8", "replace")[:2000])
            raise

    status = _in_fork(told)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    if status:
        raise Wrong(said or f"the process ended with status {status}")


def _in_fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]
