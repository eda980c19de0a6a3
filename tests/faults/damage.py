"""Tools that do damage: to bytes, to processes at every step of their way, to folders.

They serve the tests and the fault harness; nothing here knows what is being damaged.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

# What changes a file system, as Python's audit events call it; `open` counts where it writes.
STEPS = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "open"})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
BLOCK = 4096  # what a power cut leaves as zeros


def damages(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(what was done, the damaged bytes): flipped bits, blocks of zeros, cut ends, bytes too many, in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        at = int(rng.integers(len(data)))
        kind = ("flip", "zeros", "cut", "longer")[number % 4]
        if kind == "flip":
            yield f"bit {at}", data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        elif kind == "zeros":
            start = at // BLOCK * BLOCK
            size = min(BLOCK, len(data) - start)
            zeroed = data[:start] + bytes(size) + data[start + size :]
            if zeroed != data:
                yield f"zeros at {start}", zeroed
        elif kind == "cut":
            yield f"cut at {at}", data[:at]
        else:
            yield f"{at % 64 + 1} bytes more", data + rng.bytes(at % 64 + 1)


def deaths(work: Callable[[], object], limit: int = 500) -> Iterator[int]:
    """Run `work` in forked children, the n-th of which is killed (SIGKILL) right before its n-th change of the file
    system; yields n after each death, and ends after the child that lived to the end.

    Raises:
        AssertionError: a child failed otherwise, or takes more than `limit` steps.
    """
    for step in range(limit):
        child = os.fork()
        if child == 0:
            _die_at(step)
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), f"the child that was to die at step {step} failed (see its traceback)"
        yield step
    raise AssertionError(f"more than {limit} steps")


def _die_at(step: int) -> None:
    """Count the changes that this process makes from here on; the one after `step` of them kills it."""
    left = step

    def change() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in STEPS and (event != "open" or int(str(arguments[2])) & _WRITES):
            change()

    real_sync = os.fsync

    def synced(handle: int) -> None:
        change()
        real_sync(handle)

    os.fsync = synced  # type: ignore[assignment]  # has no audit event of its own
    from gog_edge.disk import leftovers

    exchange = leftovers._exchange

    def exchanged(a: Path, b: Path) -> bool:
        change()
        return exchange(a, b)

    leftovers._exchange = exchanged  # a system call of its own, through ctypes
    sys.addaudithook(heard)


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Repeat `work` in another process for as long as the block runs."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    try:
        yield
    finally:
        early, _ = os.waitpid(child, os.WNOHANG)
        assert not early, "the process beside ended by itself (see its traceback)"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def as_nobody(work: Callable[[], object]) -> str:
    """str() of what `work` gives in a forked child of a user who owns nothing (where the tests are root's), so that
    permissions count. What it needs must be imported already: that user may not be able to read the interpreter.
    """
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(into, str(work()).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0, "the child failed (see its traceback)"
    return said
