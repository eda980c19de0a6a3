"""Shared by the dialect tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from gog_edge.runtime.constraint import TokenConstraint
from gog_edge.types import ImagePart, RegisteredImage, Segment

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "qwen3"
IMAGE_TEXT = "<|vision_start|><|image_pad|><|vision_end|>"
PHOTO = RegisteredImage(0, 1000, 800, 960, 768, None, 0)


def plain(segments: Sequence[Segment]) -> str:
    """The prompt as the systems themselves would write it, as one string."""
    return "".join(IMAGE_TEXT if isinstance(s, ImagePart) else s.text for s in segments)


@lru_cache(maxsize=1)
def qwen3() -> Any:
    """The real Qwen3 tokenizer; skips the test where it was not fetched."""
    path = CACHE / "tokenizer.json"
    if not path.is_file():
        pytest.skip("needs the Qwen3 tokenizer: python tests/tools/fetch_qwen3_tokenizer.py")
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def qwen3_template() -> str:
    """The real Qwen3 chat template (text only, with tools)."""
    import json

    path = CACHE / "tokenizer_config.json"
    if not path.is_file():
        pytest.skip("needs the Qwen3 tokenizer: python tests/tools/fetch_qwen3_tokenizer.py")
    return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])


def complete(constraint: TokenConstraint) -> bool:
    """The turn could end here."""
    return bool(constraint._ended or constraint._matcher.is_accepting())
