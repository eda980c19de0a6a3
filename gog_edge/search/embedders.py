"""Where an index gets its vectors: the policy's own vision tower, or a given ONNX encoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gog_edge.errors import EngineError, SearchIndexError
from gog_edge.search.base import Embedder
from gog_edge.types import PixelLimits

if TYPE_CHECKING:
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
    return embedder_for(index.folder, index.encoder, index.encoder_file, vision)


def embedder_for(where: object, encoder: str, encoder_file: str, vision: VisionEncoder | None) -> Embedder | None:
    """As `embedder_of`, for an index at `where` of which the encoder's fingerprint and file are known."""
    if not encoder:
        return None
    if encoder_file:
        from gog_edge.search.encoder import OnnxEncoder

        try:
            return OnnxEncoder(encoder_file)
        except EngineError as e:
            raise SearchIndexError(f"{where}: the encoder that it was built with can't be loaded ({e})") from e
    if vision is None:
        raise SearchIndexError(f"{where}: was built with a policy's tower; give its --bundle")
    from gog_edge.runtime.vision import VisionEmbedder

    return VisionEmbedder(vision, limits_of(encoder))


def limits_of(fingerprint: str) -> PixelLimits:
    """The pixel limits that the fingerprint of a tower's vectors names."""
    found = _LIMITS.search(fingerprint)
    return PixelLimits(int(found[1]), int(found[2])) if found else PixelLimits()
