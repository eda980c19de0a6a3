"""An answer is an answer, under every dialect: never a call, a part of one, or a mark of the conversation."""

from __future__ import annotations

import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.types import ActionKind
from tests.dialects.helpers import PHOTO
from tests.dialects.script import write_turn

NAMES = dialects.names()
MARKUP = re.compile(
    r"</?(tool_call|tool_response|answer|response|think|thinking|reason|grounding|bbox|text_search|img_search|function|"
    r"parameter)\b|<\|",
    re.IGNORECASE,
)
PIECES = st.sampled_from(
    [
        "Paris", "the capital", " ", "\n", '"}}', "}", "{", '"', "<tool_call>", "</tool_call>", "<answer>", "</answer>",
        "<think>", "</think>", "<reason>", "</reason>", "<tool_response>", "</tool_response>", "<grounding>",
        "</grounding>", "<search>", "</search>", "<search><img></search>", "<text_search>", "</text_search>", "<bbox>",
        "</bbox>", "<code>", "</code>", "<function=search>", "</function>", "<parameter=query>", "</parameter>",
        "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<tool_ca", "</ans", "\\boxed{", "<response>", "</response>",
        '{"name": "text_search", "arguments": {"query": "Paris"}}', "[1, 2, 3, 4]", "a < b", "<b>bold</b>",
    ]
)  # fmt: skip


@functools.lru_cache
def dialect(name: str) -> Dialect:
    return dialects.load(name)


def said(name: str, text: str, *, forced: bool) -> list[str]:
    turn = dialect(name).parse(text, [PHOTO], forced=forced)
    return [action.text for action in turn.actions if action.kind is ActionKind.ANSWER]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8), forced=st.booleans())
def test_no_text_makes_markup_or_a_call_an_answer(name: str, pieces: list[str], forced: bool) -> None:
    for text in said(name, "".join(pieces), forced=forced):
        own = {m for s in dialect(name).syntaxes for m in (s.opening, s.closing) if m.startswith("<")}
        assert not MARKUP.search(text) and not any(mark in text for mark in own), text
        assert not re.fullmatch(r'.*"\s*\}\}\s*', text, re.DOTALL) or text.count("{") >= text.count("}")
        assert '"arguments"' not in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        'capital"}}\n</tool_call>',
        'capital"}}',
        '"}}\n</tool_call><|im_end|>',
        '<tool_call>\n{"name": "text_search", "arguments": {"query": "Paris"}}\n</tool_call>',
        '{"name": "text_search", "arguments": {"query": "Paris"}}',
        '<tool_call>\n{"name": "text_sea',
        '<tool_call\n>{"name": "text_search"}',
        "</think\u202e>",
        "<answer{x}",
        "<|im_ex}g",
        "<<|im_end|'>",
        "</tool_call[[[[<",
        "<tool_response>Paris</tool_response>",
        "<|im_end|>",
        "<function=search>\n<parameter=query>\nParis\n</parameter>\n</function>",
    ],
)
def test_a_call_is_never_an_answer(name: str, text: str) -> None:
    assert said(name, text, forced=True) == [""]
    assert not any(said(name, text, forced=False))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "a < b",
        "{1, 2}",
        'He said "no"',
        "C:\\x",
        "2 > 1 & 3",
        "1 < result and x > 2",
        "f(x) = {x}",
        "東京",
    ],
)
def test_a_plain_answer_is_kept_as_it_is(name: str, answer: str) -> None:
    assert said(name, answer, forced=True) == [answer]
    for behind in ('<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>', "<|im_end|>", "<tool_"):
        assert said(name, answer + behind, forced=True) == [answer]


@pytest.mark.parametrize("name", NAMES)
def test_the_forced_turn_may_begin_again_reason_or_write_a_whole_answer(name: str) -> None:
    assert said(name, write_turn(dialect(name), "answer"), forced=True) == ["1889"]
    assert said(name, 'capital"}}\n</tool_call>\nParis', forced=True) == ["Paris"]  # it goes on behind the call's end
    assert said(name, "<think>hm</think>Paris", forced=True) == ["Paris"]


def test_an_html_element_in_a_picture_of_code_can_be_answered() -> None:
    assert said("gog", "<answer>the <img> element</answer>", forced=False) == ["the <img> element"]
