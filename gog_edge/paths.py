"""Where caches of this user lie."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$GOG_EDGE_CACHE, else $XDG_CACHE_HOME/gog-edge, else ~/.cache/gog-edge (not created here)."""
    override = os.environ.get("GOG_EDGE_CACHE", "").strip()
    if override:
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base).expanduser() if base else Path("~/.cache").expanduser()) / "gog-edge"
