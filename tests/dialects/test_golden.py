"""Golden transcripts: text always, tokens with the real Qwen3 tokenizer."""

from __future__ import annotations

import json

import pytest

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import ActionKind, ImagePart
from tests.dialects.helpers import CACHE, IMAGE_TEXT, plain, qwen3, qwen3_template
from tests.dialects.scenes import FAULTS, PHOTO
from tests.dialects.script import BROKEN, GOLDEN, conversation, golden, token_digests, token_ids, transcript


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


@pytest.mark.parametrize("name", dialects.names())
def test_tokens_are_those_of_the_rendered_prompt(name: str, tokenizer: Tokenizer) -> None:
    """Segments encode to what the whole prompt, rendered as one string, encodes to: wording and outside text join."""
    reference = qwen3()
    for who, segments in transcript(name):
        text = plain(segments)
        assert IMAGE_TEXT not in text or any(isinstance(s, ImagePart) for s in segments)
        assert token_ids(tokenizer, segments) == reference.encode(text, add_special_tokens=False).ids, who


def test_token_ids_have_not_changed(tokenizer: Tokenizer) -> None:
    """Every appended piece has its recorded ids, so that a change of one token is seen, and where."""
    assert token_digests(tokenizer) == json.loads((GOLDEN / "qwen3_tokens.json").read_text())


@pytest.mark.parametrize("name", dialects.names())
def test_the_real_qwen3_template_changes_nothing(name: str) -> None:
    """The checkpoint's own template renders what the package's plain one does, in every part of a conversation."""
    own, theirs = (conversation(dialects.load(name, chat_template=t)) for t in (None, qwen3_template()))
    assert [plain(segments) for _, segments in theirs] == [plain(segments) for _, segments in own]


@pytest.mark.parametrize("name", [n for n in dialects.names() if n != "direct"])
def test_every_reply_of_a_dialect_is_in_its_golden_file(name: str) -> None:
    """A wording that no transcript meets could be changed without a test that fails."""
    dialect = dialects.load(name)
    met = {turn_reply(dialect, text) for text in [BROKEN, *FAULTS[name].values()]}
    spec = dialect.spec
    possible = {"malformed"} if any(a.via in ("tool_call", "json", "function_xml") for a in spec.actions) else set()
    if spec.parse.otherwise == "error":
        possible.add("nothing")
    if any(a.kind in ("gaze", "zoom") and a.via != "code" for a in spec.actions):
        possible.add("box")
    if any(a.via in ("tool_call", "function_xml") for a in spec.actions):
        possible.add("unknown_tool")
    if any(a.kind == "refuse" for a in spec.actions):
        possible.add("refused")
    if any(a.content == "box_or_label" for a in spec.actions):
        possible.add("ground")
    if spec.replies.surplus:
        possible.add("surplus")
    assert possible <= met


def turn_reply(dialect: Dialect, text: str) -> str:
    """Which reply a turn gets first, empty for none."""
    invalid = [a for a in dialect.parse(text, [PHOTO]).actions if a.kind is ActionKind.INVALID]
    return invalid[0].label if invalid else ""


def test_the_default_prompt_is_short(tokenizer: Tokenizer) -> None:
    system = plain(dialects.load("gog").opening("", 1)).split("<|im_start|>user")[0]
    assert len(tokenizer.encode_control(system)) <= 220
