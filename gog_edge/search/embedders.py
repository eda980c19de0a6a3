"""Where an index gets its vectors: the policy's own vision tower, or a given ONNX encoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gog_edge.errors import EngineError, SearchIndexError, UsageError
from gog_edge.search.base import Embedder

if TYPE_CHECKING:
    from gog_edge.bundle import Bundle
    from gog_edge.engines.base import VisionRunner
    from gog_edge.runtime.vision import PixelLimits, VisionEncoder
    from gog_edge.search.local.index import LocalIndex

_LIMITS = re.compile(r":(\d+)-(\d+)$")


def open_embedder(
    *, bundle: str | Path | None = None, encoder: str | Path | None = None, max_pixels: int = 0, fingerprint: str = ""
) -> Embedder:
    """The embedder of an index, without loading the policy's decoder.

    Args:
        bundle: an exported policy; its vision tower makes the vectors.
        encoder: an ONNX image encoder.
        max_pixels: of a resized picture, for the tower; 0 means what the bundle's dialect shows of a crop, so that a
            gaze is encoded once for both its jobs.
        fingerprint: of an existing index: its pixel limits are taken over where `max_pixels` is 0.

    Raises:
        UsageError: both or neither are given.
        BundleError, EngineError: one can't be loaded.
    """
    if (bundle is None) == (encoder is None):
        raise UsageError("give either --bundle (the policy's own tower) or --encoder (an ONNX image encoder)")
    if encoder is not None:
        from gog_edge.search.encoder import OnnxEncoder

        return OnnxEncoder(encoder)
    from gog_edge.bundle import Bundle
    from gog_edge.runtime.feature_cache import FeatureCache
    from gog_edge.runtime.vision import PixelLimits, VisionEmbedder, VisionEncoder

    opened = Bundle.open(Path(str(bundle)))
    if max_pixels:
        limits = PixelLimits(0, max_pixels)
    else:
        limits = _limits_of(fingerprint) if fingerprint else _crop_limits(opened)
    return VisionEmbedder(VisionEncoder(opened, _vision_runner(opened), FeatureCache(0)), limits)


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

    return VisionEmbedder(vision, _limits_of(index.encoder))


def _crop_limits(bundle: Bundle) -> PixelLimits:
    from gog_edge.agent.loader import bundle_dialect
    from gog_edge.runtime.vision import PixelLimits

    shown = bundle_dialect(bundle).limits
    return PixelLimits(shown.crop_min_pixels, shown.crop_max_pixels)


def _limits_of(fingerprint: str) -> PixelLimits:
    from gog_edge.runtime.vision import PixelLimits

    found = _LIMITS.search(fingerprint)
    return PixelLimits(int(found[1]), int(found[2])) if found else PixelLimits()


def _vision_runner(bundle: Bundle) -> VisionRunner:
    """Only the vision graph where the engine can do that: an index needs no decoder in memory."""
    if bundle.manifest.target in ("cpu", "cuda"):
        from gog_edge.engines.ort.engine import OrtVision
        from gog_edge.engines.ort.graph import OrtGraph
        from gog_edge.engines.ort.options import OrtOptions, find_device

        options = OrtOptions()
        return OrtVision(OrtGraph(bundle, "vision", find_device(bundle.manifest.target), options), options.shrink)
    from gog_edge.engines.registry import create_engine

    return create_engine(None, bundle).vision
