"""Somebody else's text on a terminal, in a page or in a prompt: nothing in it steers, turns or hides."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gog_edge.sanitize import escape_html, printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07Tower", "[2J]0;ownedTower"),
        ("\x9b31mred", "31mred"),
        ("a\rb\r\nc\td", "a\nb\nc\td"),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("\u2066x\u2069 \u200bhid\u2060den\ufeff", "x hidden"),
        ("ask" + "".join(chr(0xE0000 + ord(c)) for c in "obey me"), "ask"),
        ("\x00\x7f\x85", ""),
    ],
)
def test_what_steers_or_hides_is_dropped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "naïve café",
        "می\u200cخواهم",
        "👩\u200d👧",
        "שלום\u200f!",
        "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in "gbsct") + "\U000e007f",
        "a\nb\tc",
    ],
)
def test_writing_of_people_stays(text: str) -> None:
    assert printable(text) == text


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    assert "\x1b" not in once and "\u202e" not in once
    assert not set("<>\"'") & set(escape_html(text))


@given(st.dictionaries(st.text(), st.text()))
def test_json_means_the_same(value: dict[str, str]) -> None:
    document = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(document) == value
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in document)
