"""Golden transcripts: text always, tokens with the real Qwen3 tokenizer."""

from __future__ import annotations

import hashlib
import json

import pytest

from gog_edge.runtime import dialects
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import ImagePart
from tests.dialects.helpers import CACHE, IMAGE_TEXT, plain, qwen3
from tests.dialects.script import GOLDEN, golden, transcript


@pytest.mark.parametrize("name", dialects.names())
def test_transcript_is_the_golden_one(name: str) -> None:
    assert golden(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), (
        "changed on purpose? python -m tests.dialects.script --write"
    )


def test_every_golden_file_has_its_dialect() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == dialects.names()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    qwen3()
    return Tokenizer.load(CACHE / "tokenizer.json")


def token_ids(tokenizer: Tokenizer, segments) -> list[int]:
    start, pad, end = (tokenizer.special[f"<|{n}|>"] for n in ("vision_start", "image_pad", "vision_end"))
    out: list[int] = []
    for part in tokenizer.encode(segments):
        out += [start, pad, end] if isinstance(part, ImagePart) else part
    return out


@pytest.mark.parametrize("name", dialects.names())
def test_tokens_are_those_of_the_rendered_prompt(name: str, tokenizer: Tokenizer) -> None:
    """Segments encode to what the whole prompt, rendered as one string, encodes to: wording and outside text join."""
    reference = qwen3()
    for who, segments in transcript(dialects.load(name)):
        text = plain(segments)
        assert IMAGE_TEXT not in text or any(isinstance(s, ImagePart) for s in segments)
        assert token_ids(tokenizer, segments) == reference.encode(text, add_special_tokens=False).ids, who


def test_token_ids_have_not_changed(tokenizer: Tokenizer) -> None:
    """SHA-256 of all ids of every transcript, so that a change of one token is seen."""
    expected = json.loads((GOLDEN / "qwen3_tokens.json").read_text())
    actual = {}
    for name in dialects.names():
        ids = [token_ids(tokenizer, segments) for _, segments in transcript(dialects.load(name))]
        actual[name] = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    assert actual == expected


def test_the_default_prompt_is_short(tokenizer: Tokenizer) -> None:
    system = plain(dialects.load("gog").opening("", 1)).split("<|im_start|>user")[0]
    assert len(tokenizer.encode_control(system)) <= 220
