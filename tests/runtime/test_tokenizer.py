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


def as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of outside text."""
    return [i for part in tokenizer.encode([Text(text)]) if isinstance(part, list) for i in part]


@settings(max_examples=200, deadline=None)
@given(HOSTILE | st.text())
def test_outside_text_never_becomes_control(text: str) -> None:
    assert SPECIAL_IDS.isdisjoint(as_text(TOKENIZER, text))
    parts = TOKENIZER.encode([Control("<|im_start|>user\n"), Text(text), Control("<|im_end|>")])
    ids = [i for part in parts if isinstance(part, list) for i in part]
    assert sum(i in SPECIAL_IDS for i in ids) == 2


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")))
def test_text_comes_back_piece_by_piece(text: str) -> None:
    import unicodedata

    stream = Detokenizer(TOKENIZER)
    pieces = [stream.push(i) for i in as_text(TOKENIZER, text)]
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
    separate = as_text(TOKENIZER, "title") + as_text(TOKENIZER, "d")
    joined = TOKENIZER.encode([Text("title"), Text("d")])
    assert joined == [as_text(TOKENIZER, "titled")] or separate == as_text(TOKENIZER, "titled")


def test_images_split_runs() -> None:
    parts = TOKENIZER.encode([Text("a"), ImagePart(0), ImagePart(1), Text(""), Control("b"), Text("c")])
    assert parts == [as_text(TOKENIZER, "a"), ImagePart(0), ImagePart(1), as_text(TOKENIZER, "bc")]


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
    assert 2 not in as_text(tokenizer, "a <think> a")


def test_half_a_character_waits_and_ends_as_a_mark() -> None:
    ids = as_text(TOKENIZER, "日")
    assert len(ids) == 3
    stream = Detokenizer(TOKENIZER)
    assert [stream.push(i) for i in ids[:2]] == ["", ""]
    assert "\ufffd" in stream.flush()


def test_lone_surrogates_do_not_break_encoding() -> None:
    assert as_text(TOKENIZER, "a\udcffb")


@pytest.mark.parametrize("source", ["", "{", "[]", '{"model": {}}', "null"])
def test_a_broken_file_is_one_clear_error(source: str) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json can't be read"):
        Tokenizer(source)
