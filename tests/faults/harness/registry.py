"""The areas by name. They are imported when they are asked for: a child needs one of them."""

from __future__ import annotations

import importlib

from tests.faults.harness.core import Area

NAMES = ("images", "calls", "settings", "bundles", "manifests", "sessions", "indexes", "mcp", "http", "kernels",
         "kills", "soak", "sanitizers")  # fmt: skip


def named(name: str) -> Area:
    """The area of this name."""
    area: Area = importlib.import_module(f"tests.faults.harness.areas.{name}").AREA
    return area


AREAS = tuple(named(name) for name in NAMES)
