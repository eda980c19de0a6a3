"""The syntaxes: calls are found by their own borders, and what is closed is seen while the rest is being written."""

# ruff: noqa: E501 - literal calls

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.dialects.spec import ActionSpec
from gog_edge.dialects.syntax import SYNTAXES
from gog_edge.dialects.syntax.borders import border, closed_value
from gog_edge.types import Action, ActionKind, Region
from tests.dialects.helpers import PHOTO

PRETTY = json.dumps({"name": "text_search", "arguments": {"query": "a"}}, indent=2)
LATER = json.dumps({"name": "text_search", "arguments": {"query": "b"}}, indent=2)


def texts(dialect: Dialect, text: str) -> list[tuple[str, str]]:
    return [(action.kind.value, action.text) for action in dialect.parse(text, [PHOTO]).actions]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('<tool_call>{"name": "text_search", "arguments": {"query": "a </tool_call> b"}}</tool_call>', ["a </tool_call> b"]),
        ('<tool_call>{"name": "text_search", "arguments": {"query": "a <tool_call> b"}}</tool_call>', ["a <tool_call> b"]),
        ('<tool_call>{"name": "text_search", "arguments": {"query": "say <code> \\" }"}}</tool_call>', ['say <code> " }']),
        ("<tool_call>{'name': 'text_search', 'arguments': {'query': 'a </tool_call> \"'}}</tool_call>", ['a </tool_call> "']),
        (f"<tool_call>\n{PRETTY}\n{LATER}\n</tool_call>", ["a", "b"]),
        (f"<tool_call>\n{PRETTY}{LATER}</tool_call>", ["a", "b"]),
        (f"<tool_call>\n[{PRETTY},\n{LATER}]\n</tool_call>", ["a", "b"]),
        (f"<tool_call>\n```json\n{PRETTY}\n{LATER}\n```\n</tool_call>", ["a", "b"]),
        (f"<tool_call>\n{PRETTY}\n<tool_call>\n{LATER}\n</tool_call>", ["a", "b"]),
        (f"<tool_call>\n{PRETTY}\nand so on", ["a"]),
        (f"<tool_call>\n{PRETTY}\n<tool_call>\n{LATER}", ["a", "b"]),
    ],
)  # fmt: skip
def test_tool_calls_end_where_their_values_do(text: str, wanted: list[str]) -> None:
    assert texts(dialects.load("gog"), text) == [("text_search", words) for words in wanted]


def test_a_broken_call_takes_no_other_with_it() -> None:
    gog = dialects.load("gog")
    for broken in ('<tool_call>{"name": "oops"</tool_call>', '<tool_call>{"name": "oops"\n', "<tool_call>?\n"):
        turn = gog.parse(f"{broken}<tool_call>{PRETTY}</tool_call>", [PHOTO])
        assert [action.kind.value for action in turn.actions] == ["invalid", "text_search"], broken
    turn = gog.parse(f"<tool_call>{PRETTY} or so</tool_call>", [PHOTO])
    assert turn.actions[0].label == "malformed"  # a block that is closed holds values and nothing else


def test_objects_between_tags_end_where_they_do() -> None:
    mini = dialects.load("mini-o3")
    call = '{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "source": "original_image", "why": "</grounding>"}'
    for text in (f"<grounding>{call}</grounding>", f"<grounding>{call}", f"<grounding>{call}\nand so on"):
        assert mini.parse(text, [PHOTO]).actions[0].region == Region(100, 80, 500, 400), text
    assert mini.parse(f"<grounding>{call}{call}</grounding>", [PHOTO]).actions[0].label == "malformed"


def test_a_tag_that_is_opened_twice_is_its_innermost_pair() -> None:
    vrag = dialects.load("vrag-rl")
    assert texts(vrag, "<search>no<search>a</search>") == [("text_search", "a")]
    assert texts(vrag, "<search>no <bbox>[0, 0, 96, 96]</bbox>")[0][0] == "zoom"
    assert texts(vrag, "<answer><answer>a</answer>") == [("answer", "a")]


VALUES = st.recursive(
    st.one_of(st.integers(-9, 999), st.floats(0, 1), st.text("a\"'\\{}[](),:</>\n \u00e9", max_size=8), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab\"'{,", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, min_size=1), st.text(max_size=6), st.booleans())
def test_any_object_ends_at_its_border(value: dict, behind: str, indent: bool) -> None:
    text = json.dumps(value, indent=2 if indent else None, ensure_ascii=False)
    assert border(text + behind, 0) == len(text)
    for end in range(len(text)):
        assert border(text[:end], 0) is None


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, min_size=1))
def test_what_is_closed_stays_as_it_is(value: dict) -> None:
    """Letter by letter: members appear in order and never change; a list of lists grows by whole lists."""

    def within(part: object, whole: object) -> bool:
        if isinstance(part, dict) and isinstance(whole, dict):
            return all(within(part[k], whole[k]) for k in part) and list(part) == list(whole)[: len(part)]
        if isinstance(part, list) and isinstance(whole, list):
            return len(part) <= len(whole) and all(map(within, part, whole))
        return part == whole

    text = json.dumps(value)
    for end in range(len(text)):
        part = closed_value(text[:end])
        assert part is None or within(part, value), text[:end]
        for key in part or {}:
            numbers = value[key] if isinstance(value[key], list) else []
            if numbers and not any(isinstance(v, (list, dict)) for v in numbers):
                assert part[key] == numbers  # half a box is no box
    assert closed_value(text) == value


def test_boxes_of_a_list_are_seen_one_by_one() -> None:
    call = '<tool_call>\n{"name": "crop_and_search", "arguments": {"image_id": "1", "bbox": [[0, 0, 500, 500], [5'
    assert dialects.load("vision-deepresearch").partial(call, [PHOTO]) == (Region(0, 0, 500, 400), 0)


def test_a_half_written_name_is_not_yet_an_image() -> None:
    """The image counts once it is closed: observation_1 may become observation_12."""
    mini, images = dialects.load("mini-o3"), [PHOTO, PHOTO, PHOTO]
    call = '<grounding>{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "source": "observation_2'
    assert mini.partial(call, images) == (Region(100, 80, 500, 400), 0)
    assert mini.partial(call + '"}', images) == (Region(100, 80, 500, 400), 2)
    call = '<tool_call>{"name": "crop_search", "arguments": {"label": "see [1, 2, 3, 4]", "bbox_2d": [1, 2'
    assert dialects.load("gog").partial(call, images) is None  # a box inside of words is none


def test_plain_functions_are_written_as_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "calls.toml"
    path.write_text(
        'schema = 1\nname = "calls"\n[prompt]\nuser = "{question}"\n[replies]\nmalformed = "no: {error}"\n'
        '[[actions]]\nkind = "text_search"\nvia = "code"\nname = "search"\nargs = { query = "query", limit = "k" }\n'
        'required = ["query"]\n[[actions]]\nkind = "answer"\nvia = "tag"\nopen = "<answer>"\nclose = "</answer>"\n'
    )
    dialect = dialects.load(path)
    action = Action(ActionKind.TEXT_SEARCH, 'a "b"', limit=2)
    assert dialect.write(action, [PHOTO]) == '<code>\nsearch(query="a \\"b\\"", k=2)\n</code>'
    assert dialect.parse(dialect.write(action, [PHOTO]), [PHOTO]).actions == (action,)
    pytest.importorskip("llguidance")
    from tests.dialects.test_grammar import small_grammar, walk

    grammar, tokenizer = small_grammar()
    constraint = grammar.constraint(dialect.grammar() or "")
    text = dialect.write(Action(ActionKind.TEXT_SEARCH, "iron tower"), [PHOTO])
    walk(constraint, tokenizer.encode(text, add_special_tokens=False).ids)
    assert constraint.complete


def test_nothing_but_the_table_asks_for_a_syntax_by_its_name() -> None:
    gog = dialects.load("gog")
    for via, syntax in SYNTAXES.items():
        made = syntax([ActionSpec("answer", via, "n", "<o>", "</o>", "<l>")], gog.spec, gog.frame)
        assert made.opening and list(made.find("", lambda name: None)) == []
        assert made.partial(made.opening, lambda name: None) is None
    package = Path(dialects.__file__).parents[1]
    asked = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\.via\b", path.read_text("utf-8"))
    }
    assert asked == {"dialects/registry.py", "dialects/syntax/__init__.py"}  # the check of the file, and the table
