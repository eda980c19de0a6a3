"""What is being written, beside where it will lie: hidden, locked while its process lives, swept when that is gone.

Everything that appears whole (files, bundles, indexes, compiled kernels) is made under a name of this module and then
renamed. A killed process leaves such a name behind. The lock (flock) is the kernel's and goes with the process, so
the next one that starts in the same folder can tell what nobody writes any more, whatever became of process numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = re.compile(r"\.(?P<target>.+)\.gog-\d+-\d+\.(?P<kind>partial|old)")
_NUMBERS = itertools.count()
_DAY_S = 86_400.0  # where locks don't work, what is older than this belongs to nobody
_swept: set[str] = set()


def beside(target: Path, kind: str = "partial") -> Path:
    """A hidden name beside `target` that nobody else uses. `kind`: "partial", or "old" for what was moved away."""
    return target.with_name(f".{target.name}.gog-{os.getpid()}-{next(_NUMBERS)}.{kind}")


def followed(path: Path) -> Path:
    """Where a symbolic link leads, so that writing changes what it points to and leaves the link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def scratch_folder(target: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """A new empty folder beside `target`, locked for the duration of the block and removed at its end if still there.

    Raises:
        OSError: it can't be made.
    """
    path, handle = _claim(target, lambda p: p.mkdir(mode))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _unlock(handle)


@contextlib.contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """A new empty file beside `target`, locked for the duration of the block and removed at its end if still there.

    Raises:
        OSError: it can't be made.
    """
    path, handle = _claim(target, lambda p: p.touch(exist_ok=False))
    try:
        yield path
    finally:
        remove(path)
        _unlock(handle)


def swap_in(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target` and delete what was there.

    In one step where the kernel can exchange names. Else in two renames: a process that dies between them leaves
    `target` missing, and `sweep` puts the old one back.

    Raises:
        OSError: a folder can't be renamed.
    """
    if not os.path.lexists(target):
        new.rename(target)
        return
    old = new
    sync(new)
    if not _exchange(new, target):
        old = beside(target, "old")
        handle = _lock(target)  # the lock goes along, so that no sweep puts it back meanwhile
        try:
            target.rename(old)
            try:
                new.rename(target)
            except OSError:
                old.rename(target)
                raise
        finally:
            _unlock(handle)
    with contextlib.suppress(OSError):
        sync(target.parent)  # before the old one goes: a power cut must not take both
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file or folder on the disk. Without it a power cut can leave a new name with zeros behind it.

    Raises:
        OSError: it can't be opened, or written.
    """
    posix = hasattr(os, "O_DIRECTORY")
    if not posix and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if posix else os.O_RDWR)  # and asks for the right to write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep_once(folder: Path) -> None:
    """`sweep`, the first time that this process has to do with `folder`."""
    name = str(folder.absolute())
    if name not in _swept:
        _swept.add(name)
        sweep(folder)


def sweep(folder: Path) -> None:
    """Delete what killed processes left in `folder`; what they had moved away and not replaced is put back.

    Never raises: a folder that can't be read or changed is left alone.
    """
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]:
            with contextlib.suppress(OSError):
                _clear(path)


def remove(path: Path) -> bool:
    """Delete a file if that is possible; whether it is gone. For caches, which end no question."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def touch(path: Path) -> None:
    """Make a file the one that was used last, if that is possible."""
    with contextlib.suppress(OSError):
        path.touch()


def _claim(target: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """A new name beside `target`, made and locked. Who is swept between the two begins again."""
    sweep_once(target.parent)
    while True:
        path = beside(target)
        make(path)
        handle = _lock(path)
        if os.path.lexists(path):
            return path, handle
        _unlock(handle)


def _clear(path: Path) -> None:
    if not _abandoned(path):
        return
    match = _NAME.fullmatch(path.name)
    if match is None:
        return
    target = path.with_name(match["target"])
    if match["kind"] == "old" and not os.path.lexists(target):
        path.rename(target)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _abandoned(path: Path) -> bool:
    """Whether the process that wrote `path` is gone."""
    if path.is_symlink():
        return True
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except ImportError:
        return time.time() - path.lstat().st_mtime > _DAY_S
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return time.time() - path.lstat().st_mtime > _DAY_S
    finally:
        os.close(handle)


def _lock(path: Path) -> int | None:
    """Hold `path`, so that no sweep takes it; None where there are no locks."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE); False where the C library or the file system lacks it."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # Windows: there is no library without a name
        return False
    done: int = renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange)
    return done == 0
