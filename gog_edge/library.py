"""Bundles of this user under short names: what `gog-edge export CHECKPOINT` makes, and what is used if none is named.

The library is a folder with one bundle a folder. Beside them, `.last` holds the bundle that was last exported or named,
and `.indexes.json` the index that was last named with each bundle.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
from pathlib import Path

from gog_edge.bundle import MANIFEST
from gog_edge.disk import leftovers
from gog_edge.disk.files import write_text
from gog_edge.errors import BundleError, UsageError

VARIABLE = "GOG_EDGE_LIBRARY"
_LAST = ".last"
_INDEXES = ".indexes.json"


def directory() -> Path:
    """$GOG_EDGE_LIBRARY, else $XDG_DATA_HOME/gog-edge/bundles, else ~/.local/share/gog-edge/bundles (not created here).

    Raises:
        UsageError: this user has no home folder and neither variable is set.
    """
    override = os.environ.get(VARIABLE, "").strip()
    base = os.environ.get("XDG_DATA_HOME", "").strip()
    try:
        if override:
            return Path(override).expanduser().absolute()
        return (Path(base) if base else Path("~/.local/share")).expanduser().absolute() / "gog-edge" / "bundles"
    except RuntimeError as e:
        raise UsageError(f"the library has no place: this user has no home folder; set {VARIABLE} to a folder") from e


def is_name(text: str) -> bool:
    """Whether this can be the name of a bundle of the library: one part of a path, not hidden."""
    return Path(text).name == text and not text.startswith(".") and text.isprintable()


def place(name: str) -> Path:
    """Where the bundle `name` lies, or will lie.

    Raises:
        UsageError: that is no name.
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} can't be the name of a bundle: no slashes, no dot in front; give another, or a folder with -o"
        )
    return directory() / name


def names() -> list[str]:
    """The bundles of the library, the newest first."""
    root = directory()
    leftovers.sweep_once(root)
    try:
        found = [path for path in root.iterdir() if is_name(path.name) and _is_bundle(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path.name for path in sorted(found, key=lambda p: ((p / MANIFEST).stat().st_mtime_ns, p.name))][::-1]


def find(given: str | Path) -> Path:
    """The folder of a bundle, given by its path or by its name in the library; a bundle at the path comes first.

    Raises:
        BundleError: it is neither.
    """
    path, name = Path(given), str(given)
    if _is_bundle(path) or not is_name(name):
        return path
    if _is_bundle(place(name)):
        return place(name)
    if path.exists():
        return path  # whoever opens it says what is wrong with it
    raise BundleError(f"there is no bundle {name!r}, neither here nor in the library{_instead(name)}")


def default() -> Path | None:
    """The bundle that was last exported into the library or named; else its newest; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        last = Path((directory() / _LAST).read_text("utf-8").strip())
        if last.is_absolute() and _is_bundle(last):
            return last
    found = names()
    return place(found[0]) if found else None


def remember(bundle: Path) -> None:
    """Make this bundle the default; where the library can't be written, nothing is remembered."""
    if _is_bundle(bundle):
        with contextlib.suppress(UsageError):
            write_text(directory() / _LAST, f"{bundle.absolute()}\n")


def index_of(bundle: Path) -> Path | None:
    """The index that was last named with this bundle, if it is still there."""
    found = _indexes().get(str(bundle.absolute()))
    return Path(found) if isinstance(found, str) and Path(found).is_dir() else None


def remember_index(bundle: Path, index: Path) -> None:
    """Search this index with this bundle from now on, where none is named; what can't be written is not remembered."""
    if _is_bundle(bundle) and index.is_dir():
        _write_indexes({**_indexes(), str(bundle.absolute()): str(index.absolute())})


def _write_indexes(kept: dict[str, object]) -> None:
    if kept != _indexes():
        with contextlib.suppress(UsageError, OSError):
            write_text(directory() / _INDEXES, json.dumps(kept, indent=1) + "\n")


def _indexes() -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError, UsageError):
        found = json.loads((directory() / _INDEXES).read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def remove(name: str) -> None:
    """Delete a bundle of the library. It leaves its name in one step, so nobody opens half of it.

    Raises:
        UsageError: there is no such bundle, or it can't be deleted.
    """
    folder = place(name)
    if not _is_bundle(folder):
        raise UsageError(f"there is no bundle {name!r} in the library{_instead(name)}")
    hidden = leftovers.beside(folder)
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        folder.rename(hidden)
    except OSError as e:
        raise UsageError(f"{folder} can't be removed: {e.strerror or e}") from e
    shutil.rmtree(hidden, ignore_errors=True)
    _write_indexes({bundle: index for bundle, index in _indexes().items() if bundle != str(folder.absolute())})


def _is_bundle(path: Path) -> bool:
    try:
        return (path / MANIFEST).is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        return False


def _instead(name: str) -> str:
    """What to do about a name that is not there."""
    found = names()
    close = difflib.get_close_matches(name, found, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return " (gog-edge list shows what is there)" if found else ", which is empty: gog-edge export CHECKPOINT fills it"
