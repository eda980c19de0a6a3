"""Added tokens with rules of their own: the same ids as the `tokenizers` library, and the law of control tokens."""

from __future__ import annotations

import json
import unicodedata

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.export.synthetic.text import tokenizer_json
from gog_edge.runtime.added_tokens import _SPACE, is_word
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.types import Control, ImagePart, Text

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
NAMES = ("<|im_end|>", "<tool_call>", "<think>", "word", "\u00e9t\u00e9", "<t", "cafe\u0301")


def source(rules: dict[str, dict[str, bool]], normalizer: dict | None) -> str:  # type: ignore[type-arg]
    data = tokenizer_json(640)
    data["normalizer"] = normalizer
    known = {t["content"]: t for t in data["added_tokens"]}
    for name, flags in rules.items():
        if name not in known:
            number = 640 + len(data["added_tokens"])
            known[name] = {"id": number, "content": name, "special": False}
            data["model"]["vocab"][name] = number
            data["added_tokens"].append(known[name])
        known[name].update(dict.fromkeys(FLAGS, False), **flags)
    return json.dumps(data)


def ids(tokenizer: Tokenizer, segments: list) -> list[int]:  # type: ignore[type-arg]
    return [i for part in tokenizer.encode(segments) if isinstance(part, list) for i in part]


RULES = st.dictionaries(st.sampled_from(NAMES), st.fixed_dictionaries({f: st.booleans() for f in FLAGS}), min_size=1)
PIECES = st.sampled_from([*NAMES, " ", "\n", "\u00a0", "\u3000", "x", "_", "<", "\u0301", "é", "ATE", "tool", "日本"])
NORMALIZERS = st.sampled_from([None, {"type": "NFC"}, {"type": "Lowercase"}])


@settings(max_examples=300, deadline=None)
@given(RULES, NORMALIZERS, st.lists(PIECES, max_size=12).map("".join))
def test_wording_gets_the_ids_of_the_library(rules: dict, normalizer: dict | None, text: str) -> None:  # type: ignore[type-arg]
    made = source(rules, normalizer)
    whole = tokenizers.Tokenizer.from_str(made)
    assert ids(Tokenizer(made), [Control(text)]) == whole.encode(text, add_special_tokens=False).ids


STRIPPING = Tokenizer(source({"<tool_call>": {"lstrip": True, "rstrip": True}}, {"type": "NFC"}))
CALL = STRIPPING.special["<tool_call>"]


def test_white_space_of_outside_text_is_taken_too() -> None:
    """As in the rendered prompt, which is one string."""
    segments = [Text("a \n"), Control(" <tool_call> "), Text("\n b "), Control("\n<tool_call>")]
    assert ids(STRIPPING, segments) == [*STRIPPING.encode_text("a"), CALL, *STRIPPING.encode_text("b"), CALL]
    parts = STRIPPING.encode([Control("<tool_call>"), ImagePart(0), Text(" b")])
    assert parts == [[CALL], ImagePart(0), STRIPPING.encode_text(" b")]


def test_outside_text_is_never_a_token_whatever_stands_beside_it() -> None:
    assert CALL not in ids(STRIPPING, [Control("x <tool"), Text("_call>"), Text(" <tool_call> "), Control("y")])
    alone = Tokenizer(source({"word": {"single_word": True}}, None))
    number = alone.special["word"]
    assert ids(alone, [Text("a"), Control("word")]) == alone.encode_text("aword")
    assert number in ids(alone, [Text("a "), Control("word"), Text("!")])
    assert number not in ids(alone, [Control("word"), Text("s")])


def test_classes_of_characters_are_the_librarys() -> None:
    """Every assigned character up to the first CJK ones, and the planes where letters are circled."""
    makes = {}
    for name in ("single_word", "rstrip"):
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[U]": 0}, unk_token="[U]"))
        made.add_tokens([tokenizers.AddedToken("token", normalized=False, **{name: True})])
        makes[name] = made
    wrong = []
    for code in (*range(0x3100), *range(0x1F100, 0x1F200)):
        character = chr(code)
        if unicodedata.category(character) in ("Cs", "Cn"):
            continue
        text = f"token{character}"
        word = makes["single_word"].encode(text).tokens == ["[U]"]
        space = makes["rstrip"].encode(text).offsets[0] == (0, 6)
        if (word, space) != (is_word(character), character in _SPACE):
            wrong.append(hex(code))
    assert wrong == []
