"""The embedder of an index: a policy's own vision tower at the size in which its dialect shows crops, or an encoder."""

from __future__ import annotations

from pathlib import Path

from gog_edge.agent.loader import bundle_dialect
from gog_edge.bundle import Bundle, load_whole
from gog_edge.engines.tower import vision_alone
from gog_edge.errors import UsageError
from gog_edge.runtime.feature_cache import FeatureCache
from gog_edge.runtime.vision import VisionEmbedder, VisionEncoder
from gog_edge.search.base import Embedder
from gog_edge.search.embedders import limits_of
from gog_edge.types import PixelLimits


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

    def tower(opened: Bundle) -> Embedder:
        opened.check(opened.manifest.files.keys())
        if max_pixels:
            limits = PixelLimits(0, max_pixels)
        else:
            limits = limits_of(fingerprint) if fingerprint else _crop_limits(opened)
        return VisionEmbedder(VisionEncoder(opened, vision_alone(opened), FeatureCache(0)), limits)

    return load_whole(Path(str(bundle)), tower, lambda embedder: None)


def _crop_limits(bundle: Bundle) -> PixelLimits:
    shown = bundle_dialect(bundle).limits.crop
    return PixelLimits(shown.min_pixels, shown.max_pixels)
