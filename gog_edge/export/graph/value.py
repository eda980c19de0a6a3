"""A tensor flowing through a graph that is being built."""

from __future__ import annotations

from dataclasses import dataclass

from gog_edge.manifest import DType


@dataclass(frozen=True)
class Value:
    """Name of a graph value and its element type."""

    name: str
    dtype: DType = "float32"
