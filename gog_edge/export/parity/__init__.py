"""Comparing a bundle with the HF model that it came from: the only place that sees torch and transformers."""

from __future__ import annotations

from typing import Any

from gog_edge.bundle import Bundle
from gog_edge.engines.base import Engine
from gog_edge.engines.registry import EngineEntry


def _create(bundle: Bundle, options: Any, *, checkpoint: str) -> Engine:
    from gog_edge.export.parity.engine import create

    return create(bundle, options, checkpoint=checkpoint)


TRANSFORMERS = EngineEntry(_create, "export,parity", given="checkpoint")
