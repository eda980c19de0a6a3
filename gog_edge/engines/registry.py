"""Engines by name, found through entry points of the group "gog_edge.engines"; loaded when one is asked for.

An entry's module imports what its engine needs inside of `create`, so that a missing extra is met in one clear line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gog_edge.errors import EngineError, UsageError
from gog_edge.registry import Registry

if TYPE_CHECKING:
    from gog_edge.bundle import Bundle
    from gog_edge.engines.base import Engine
    from gog_edge.manifest import Manifest


@dataclass(frozen=True)
class EngineEntry:
    """`create` takes (bundle, options) and returns an `Engine`. `extra`: pip extra that it needs. `gpu`: it needs one.

    `given`: keyword of `create` for what the user writes after a colon, as in transformers:CHECKPOINT.
    `remote`: no weights are needed here, the engine `WritesTurns`.
    """

    create: Callable[..., Engine]
    extra: str = ""
    gpu: bool = False
    given: str = ""
    remote: bool = False


ENGINES = Registry("gog_edge.engines", EngineEntry)


def default_engine(manifest: Manifest) -> str:
    """The name of the engine that a bundle was exported for."""
    return "cpu" if manifest.backend in ("native", "ort", "portable") else manifest.backend


def find_engine(name: str) -> EngineEntry:
    """The entry of an engine, by what stands before the colon.

    Raises:
        UsageError: no engine has this name.
    """
    entry = ENGINES.get(name)
    if entry is None:
        raise UsageError(f"there is no engine {name!r}: {ENGINES.advice(name)}")
    return entry


def is_remote(name: str | None) -> bool:
    """Whether the engine of this name, or of what stands before its colon, runs elsewhere.

    Raises:
        UsageError: no engine has this name.
    """
    return name is not None and find_engine(name.partition(":")[0]).remote


def create_engine(name: str | None, bundle: Bundle, options: Any = None) -> Engine:
    """Load the bundle's graphs with the engine `name` (None: the one that the bundle was exported for).

    Args:
        name: one of `ENGINES.names()`; transformers:CHECKPOINT compares with the checkpoint that the bundle was made
            of.
        options: the engine's own frozen options object (`OrtOptions` …), or None for its defaults.

    Raises:
        UsageError: no engine has this name.
        EngineError: its package is missing or it could not load the graphs.
    """
    wanted, _, given = (name or default_engine(bundle.manifest)).partition(":")
    entry = find_engine(wanted)
    if bool(given) != bool(entry.given):
        form = f"{wanted}:{entry.given.upper()}" if entry.given else wanted
        raise UsageError(f"engine {name!r} can't be read: write {form}")
    arguments = {entry.given: given} if given else {}
    try:
        return entry.create(bundle, options, **arguments)
    except ImportError as e:
        how = f"pip install 'gog-edge[{entry.extra}]'" if entry.extra else "reinstall gog-edge"
        raise EngineError(f"engine {wanted!r} is not available here ({e}); {how}") from e
