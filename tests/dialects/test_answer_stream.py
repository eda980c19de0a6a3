"""The text of an answer while it is written: under every dialect the pieces are what the answer is in the end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.dialects.answer_stream import AnswerStream, answer_of
from gog_edge.types import Action, ActionKind
from tests.dialects.helpers import PHOTO
from tests.dialects.test_answer_text import MARKUP, NAMES, PIECES, dialect

LONG = "The tower is made of wrought iron, has three levels, and was finished in 1889."


def written(spoken: Dialect, text: str, *, size: int = 1, **turn: bool) -> tuple[list[str], str]:
    """(pieces, the answer) of a turn that is written `size` characters at a time."""
    stream = spoken.answer_stream(turn.get("forced", False), turn.get("constrained", False), turn.get("as_json", False))
    pieces = fed(stream, text, size)
    said = answer_of(stream.settle(spoken.parse(text, [PHOTO], forced=turn.get("forced", False)), text))
    return [piece for piece in [*pieces, stream.rest(said)] if piece], said


def fed(stream: AnswerStream, text: str, size: int) -> list[str]:
    pieces = []
    for end in range(size, len(text) + size, size):
        if stream.sign in text[:end]:
            pieces.append(stream.feed(text[:end]))
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8), size=st.integers(1, 7), forced=st.booleans(), constrained=st.booleans())
def test_the_pieces_are_the_answer_whatever_is_written(
    name: str, pieces: list[str], size: int, forced: bool, constrained: bool
) -> None:
    shown, said = written(
        dialect(name), "".join(pieces), size=size, forced=forced, constrained=constrained and not forced
    )
    assert "".join(shown) == said
    assert not MARKUP.search(said) and '"arguments"' not in said


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_written_as_it_is_read(name: str) -> None:
    """Nothing changes for turns that are as they should be, and what can be known early is shown early."""
    spoken = dialect(name)
    for text in (LONG, 'a < b, he said "no" to {1, 2} and f(x) = {x}, and so on and on', "Paris"):
        turn = spoken.write(Action(ActionKind.ANSWER, text), [PHOTO])
        assert answer_of(spoken.parse(turn, [PHOTO])) == text
        shown, said = written(spoken, turn, constrained=True)
        assert said == text
        marked = any(s.first.kind == "answer" for s in spoken.syntaxes)
        assert (len(shown) > 5) == (len(text) > 20 and (marked or not spoken.syntaxes)), shown
        ended, said = written(spoken, turn.removeprefix(spoken.spec.forced.prefill), forced=True)
        assert said == text
        assert (len(ended) > 5) == (len(text) > 60), ended


def test_a_rule_that_lets_a_later_call_cancel_an_answer_holds_it_back_unless_a_grammar_forbids_that() -> None:
    spoken = dialect("mini-o3")  # answer = "last"
    turn = f"<think>hm</think><answer>{LONG}</answer>"
    assert len(written(spoken, turn)[0]) == 1
    assert len(written(spoken, turn, constrained=True)[0]) > 20
    call = '<grounding>{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "source": "original_image"}</grounding>'
    assert written(spoken, turn + call)[1] == ""  # it was cancelled: it was no answer


@pytest.mark.parametrize(
    "behind", ["", "</answer>", "</answer><answer>No", "<tool_call>", "</tool_call>", "<|im_end|>"]
)
def test_what_was_shown_stands(behind: str) -> None:
    shown, said = written(dialect("gog"), f"<answer>{LONG}{behind}")
    assert said == LONG == "".join(shown) and len(shown) > 20


@pytest.mark.parametrize("tail", ['capital"}}\n</tool_call>', 'capital"}}\n</tool_call>\nParis', "<tool_call>\n{"])
def test_a_forced_turn_that_begins_with_the_rest_of_a_call_shows_nothing_of_it(tail: str) -> None:
    shown, said = written(dialect("gog"), tail, forced=True)
    assert said == ("Paris" if tail.endswith("Paris") else "") == "".join(shown)


def test_reasoning_is_not_shown() -> None:
    for name in NAMES:
        spoken = dialect(name)
        stream = spoken.answer_stream(False, False)
        begun = f"{spoken.spec.parse.think_open}I think of <answer>{LONG}"
        if spoken.spec.parse.think_open:
            assert fed(stream, begun, 1) == []


TOOL = """
extends = "gog"
schema = 1
name = "tool-answers"
[[actions]]
kind = "text_search"
via = "tool_call"
name = "search"
args = { query = "query" }
[[actions]]
kind = "answer"
via = "VIA"
name = "finish"
open = "<end>"
close = "</end>"
args = { text = "answer" }
"""


@pytest.mark.parametrize("via", ["tool_call", "json"])
def test_an_answer_inside_json_is_decoded_as_it_is_written(via: str, tmp_path: Any) -> None:
    (tmp_path / "d.toml").write_text(TOOL.replace("VIA", via))
    spoken = dialects.load(tmp_path / "d.toml")
    text = 'He said "no",\nand it cost 3 € \U0001f600 in 1889, or so they say in Paris'
    arguments = json.dumps({"answer": text})
    call = f'<tool_call>\n{{"name": "finish", "arguments": {arguments}}}\n</tool_call>'
    turn = call if via == "tool_call" else f"<end>{arguments}</end>"
    shown, said = written(spoken, turn)
    assert "".join(shown) == said == text
    assert len(shown) > 20 and not any("\\" in piece for piece in shown)
    search = '<tool_call>\n{"name": "search", "arguments": {"query": "the answer: 12"}}\n</tool_call>'
    assert written(spoken, search) == ([], "")


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_an_answer_with_whatever_its_strings_hold(name: str) -> None:
    said = {"name": "Paris", "arguments": "</answer> <tool_call> }", "n": [1, 2]}
    spoken = dialect(name)
    written_out = json.dumps(said)
    for forced in (False, True):
        turn = spoken.write(Action(ActionKind.ANSWER, written_out), [PHOTO])
        turn = turn.removeprefix(spoken.spec.forced.prefill) if forced else turn
        shown, answer = written(spoken, turn, forced=forced, constrained=True, as_json=True)
        assert json.loads(answer) == said and "".join(shown) == answer and len(shown) > 10
