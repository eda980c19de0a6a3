"""Where files of this user lie, how a `~` in a path is read (services and containers often have no home), and what is
an address and no path."""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

log = logging.getLogger("gog_edge")


def expand(path: str | Path) -> Path:
    """`path` with its `~` replaced; as it is where that home can't be told (no HOME and no entry in passwd)."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_address(text: str) -> bool:
    """Whether this is an http(s) address and not a file."""
    return text[:8].lower().startswith(("http://", "https://"))


def cache_directory() -> Path:
    """$GOG_EDGE_CACHE, else $XDG_CACHE_HOME/gog-edge, else ~/.cache/gog-edge (not created here).

    Without a home it is a folder among the temporary files that is this user's alone.
    """
    override = os.environ.get("GOG_EDGE_CACHE", "").strip()
    if override:
        return expand(override)
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    if base:
        return expand(base) / "gog-edge"
    try:
        return Path("~/.cache").expanduser() / "gog-edge"
    except RuntimeError:
        return _homeless()


@functools.cache
def _homeless() -> Path:
    """A private folder in the temporary folder, where others may have taken the name: then one for this process."""
    if hasattr(os, "getuid"):
        try:
            folder = Path(tempfile.gettempdir()) / f"gog-edge-{os.getuid()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
                return folder
        except OSError as e:
            log.debug("a folder among the temporary files: %s", e)
    try:
        return Path(tempfile.mkdtemp(prefix="gog-edge-"))
    except OSError as e:
        log.info("there is no place for caches (%s); set GOG_EDGE_CACHE", e)
        return Path(os.devnull) / "gog-edge"  # nothing can be there, so every cache is an absent one
