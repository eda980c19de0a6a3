"""Engines by name. A factory is imported when it is asked for, so a missing extra is met in one clear line."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gog_edge.errors import EngineError, UsageError

if TYPE_CHECKING:
    from gog_edge.bundle import Bundle
    from gog_edge.engines.base import Engine


@dataclass(frozen=True)
class EngineEntry:
    """`module:factory`; the factory takes (bundle, options) and returns an `Engine`. `extra`: pip extra it needs.

    `given`: keyword of what the user writes after a colon, as in transformers:CHECKPOINT.
    """

    module: str
    factory: str
    extra: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    given: str = ""


_ORT = "gog_edge.engines.ort.engine"

ENGINES: dict[str, EngineEntry] = {
    "onnxruntime": EngineEntry(_ORT, "create"),
    "cpu": EngineEntry(_ORT, "create", arguments=(("device", "cpu"),)),
    "cuda": EngineEntry(_ORT, "create", "gpu", (("device", "cuda"),)),
    "ort-tensorrt": EngineEntry(_ORT, "create", "gpu", (("device", "tensorrt"),)),
    "ort-nv-tensorrt-rtx": EngineEntry(_ORT, "create", "gpu", (("device", "nv-tensorrt-rtx"),)),
    "tensorrt": EngineEntry("gog_edge.engines.tensorrt", "create", "tensorrt", (("runtime", "tensorrt"),)),
    "tensorrt-rtx": EngineEntry("gog_edge.engines.tensorrt", "create", "tensorrt-rtx", (("runtime", "tensorrt-rtx"),)),
    # The HF model itself, to compare a bundle's accuracy with; named here, never loaded unless it is asked for.
    "transformers": EngineEntry("gog_edge.export.parity.engine", "create", "export,parity", given="checkpoint"),
}

DEFAULT_BY_TARGET = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}


def create_engine(name: str | None, bundle: Bundle, options: Any = None) -> Engine:
    """Load the bundle's graphs with the engine `name` (None: the one its target was exported for).

    Args:
        name: one of `ENGINES`; transformers:CHECKPOINT compares with the checkpoint that the bundle was made of.
        options: the engine's own frozen options object (`OrtOptions` …), or None for its defaults.

    Raises:
        UsageError: no engine has this name.
        EngineError: its package is missing or it could not load the graphs.
    """
    wanted, _, given = (name or DEFAULT_BY_TARGET[bundle.manifest.target]).partition(":")
    entry = ENGINES.get(wanted)
    if entry is None:
        near = difflib.get_close_matches(wanted, ENGINES, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f": one of {', '.join(sorted(ENGINES))}"
        raise UsageError(f"there is no engine {wanted!r}{hint}")
    if bool(given) != bool(entry.given):
        form = f"{wanted}:{entry.given.upper()}" if entry.given else wanted
        raise UsageError(f"engine {name!r} can't be read: write {form}")
    mend = f"pip install 'gog-edge[{entry.extra}]'" if entry.extra else "reinstall gog-edge"
    try:
        module = importlib.import_module(entry.module)
    except ImportError as e:
        raise EngineError(f"engine {wanted!r} is not available here ({e}); {mend}") from e
    arguments = {**dict(entry.arguments), **({entry.given: given} if given else {})}
    engine: Engine = getattr(module, entry.factory)(bundle, options, **arguments)
    return engine
