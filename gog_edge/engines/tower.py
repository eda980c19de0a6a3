"""The vision tower of a bundle without its decoder."""

from __future__ import annotations

from gog_edge.bundle import Bundle
from gog_edge.engines.base import VisionRunner
from gog_edge.engines.registry import create_engine, default_engine


def vision_alone(bundle: Bundle) -> VisionRunner:
    """Only the vision graph where the engine can do that: an index needs no decoder in memory.

    Raises:
        EngineError: it could not be loaded.
    """
    device = default_engine(bundle.manifest)
    if device in ("cpu", "cuda"):
        from gog_edge.engines.ort.engine import OrtVision
        from gog_edge.engines.ort.graph import OrtGraph
        from gog_edge.engines.ort.options import OrtOptions, find_device

        options = OrtOptions()
        return OrtVision(OrtGraph(bundle, "vision", find_device(device), options), options.shrink)
    return create_engine(None, bundle).vision
