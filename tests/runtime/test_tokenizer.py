"""Tokens: control tokens come from Control only; runs join; text grows character by character."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import BundleError
from gog_edge.export.synthetic.text import SPECIALS, tokenizer_json
from gog_edge.runtime.tokenizer import Detokenizer, Tokenizer
from gog_edge.types import Control, ImagePart, Text

SOURCE = json.dumps(tokenizer_json(640))
TOKENIZER = Tokenizer(SOURCE)
SPECIAL_IDS = frozenset(TOKENIZER.special.values())
HOSTILE = st.lists(st.sampled_from([name for name, _ in SPECIALS] + ["a", " ", "\n", "<", "|", ">", "é", "日本"])).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(HOSTILE | st.text())
def test_outside_text_never_becomes_control(text: str) -> None:
    assert SPECIAL_IDS.isdisjoint(TOKENIZER.encode_text(text))
    parts = TOKENIZER.encode([Control("<|im_start|>user\n"), Text(text), Control("<|im_end|>")])
    ids = [i for part in parts if isinstance(part, list) for i in part]
    assert sum(i in SPECIAL_IDS for i in ids) == 2


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")))
def test_text_comes_back_piece_by_piece(text: str) -> None:
    import unicodedata

    stream = Detokenizer(TOKENIZER)
    pieces = [stream.push(i) for i in TOKENIZER.encode_text(text)]
    assert "".join([*pieces, stream.flush()]) == unicodedata.normalize("NFC", text)
    assert not any("\ufffd" in p for p in pieces)


def test_runs_join_like_a_rendered_prompt() -> None:
    """HF tokenises the rendered prompt as one string; so do we, but for control tokens in outside text."""
    import tokenizers

    whole = tokenizers.Tokenizer.from_str(SOURCE)
    segments = [Control("<|im_start|>user\nthe image"), Text(" of a crop"), Control("\nanswer<|im_end|>\n")]
    ours = [i for part in TOKENIZER.encode(segments) if isinstance(part, list) for i in part]
    rendered = "<|im_start|>user\nthe image of a crop\nanswer<|im_end|>\n"
    assert ours == whole.encode(rendered, add_special_tokens=False).ids
    separate = TOKENIZER.encode_text("title") + TOKENIZER.encode_text("d")
    joined = TOKENIZER.encode([Text("title"), Text("d")])
    assert joined == [TOKENIZER.encode_text("titled")] or separate == TOKENIZER.encode_text("titled")


def test_images_split_runs() -> None:
    parts = TOKENIZER.encode([Text("a"), ImagePart(0), ImagePart(1), Text(""), Control("b"), Text("c")])
    assert parts == [TOKENIZER.encode_text("a"), ImagePart(0), ImagePart(1), TOKENIZER.encode_text("bc")]


def test_a_vocabulary_that_spells_its_control_tokens() -> None:
    """Word-level vocabularies hold `<think>` as a word: outside text must not reach it either."""
    source = json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": 2, "content": "<think>", "special": False, "normalized": False, "single_word": False,
                 "lstrip": False, "rstrip": False}
            ],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1, "<think>": 2, "t": 3}, "unk_token": "[UNK]"},
        }
    )  # fmt: skip
    tokenizer = Tokenizer(source)
    assert tokenizer.encode_control("a <think> a") == [0, 2, 0]
    assert 2 not in tokenizer.encode_text("a <think> a")


def test_half_a_character_waits_and_ends_as_a_mark() -> None:
    ids = TOKENIZER.encode_text("日")
    assert len(ids) == 3
    stream = Detokenizer(TOKENIZER)
    assert [stream.push(i) for i in ids[:2]] == ["", ""]
    assert "\ufffd" in stream.flush()


def test_lone_surrogates_do_not_break_encoding() -> None:
    assert TOKENIZER.encode_text("a\udcffb")


@pytest.mark.parametrize("source", ["", "{", "[]", '{"model": {}}', "null"])
def test_a_broken_file_is_one_clear_error(source: str) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json can't be read"):
        Tokenizer(source)
