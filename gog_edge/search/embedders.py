"""Where an index gets its vectors: the policy's own vision tower, or a given ONNX encoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gog_edge.errors import EngineError, SearchIndexError
from gog_edge.search.base import Embedder
from gog_edge.types import PixelLimits

if TYPE_CHECKING:
    from gog_edge.bundle import Bundle
    from gog_edge.engines.base import VisionRunner
    from gog_edge.runtime.vision import VisionEncoder
    from gog_edge.search.local.index import LocalIndex

_LIMITS = re.compile(r":(\d+)-(\d+)$")


def embedder_of(index: str | Path | LocalIndex, vision: VisionEncoder | None = None) -> Embedder | None:
    """The encoder that made an index's vectors: a loaded policy's tower, or the ONNX file that the index remembers.

    None for an index without vectors.

    Raises:
        SearchIndexError: the index can't be opened, or its encoder file is gone.
    """
    from gog_edge.search.local.index import LocalIndex

    if not isinstance(index, LocalIndex):
        with LocalIndex(index) as opened:
            return embedder_of(opened, vision)
    if not index.encoder:
        return None
    if index.encoder_file:
        from gog_edge.search.encoder import OnnxEncoder

        try:
            return OnnxEncoder(index.encoder_file)
        except EngineError as e:
            raise SearchIndexError(f"{index.folder}: the encoder that it was built with can't be loaded ({e})") from e
    if vision is None:
        raise SearchIndexError(f"{index.folder}: was built with a policy's tower; give its --bundle")
    from gog_edge.runtime.vision import VisionEmbedder

    return VisionEmbedder(vision, limits_of(index.encoder))


def limits_of(fingerprint: str) -> PixelLimits:
    """The pixel limits that the fingerprint of a tower's vectors names."""
    found = _LIMITS.search(fingerprint)
    return PixelLimits(int(found[1]), int(found[2])) if found else PixelLimits()


def vision_runner(bundle: Bundle) -> VisionRunner:
    """Only the vision graph where the engine can do that: an index needs no decoder in memory."""
    from gog_edge.engines.registry import create_engine, default_engine

    device = default_engine(bundle.manifest)
    if device in ("cpu", "cuda"):
        from gog_edge.engines.ort.engine import OrtVision
        from gog_edge.engines.ort.graph import OrtGraph
        from gog_edge.engines.ort.options import OrtOptions, find_device

        options = OrtOptions()
        return OrtVision(OrtGraph(bundle, "vision", find_device(device), options), options.shrink)
    return create_engine(None, bundle).vision
