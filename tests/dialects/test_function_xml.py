"""Qwen3.5's calls: functions and parameters in XML."""

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.types import Action, ActionKind, Region
from tests.dialects.helpers import PHOTO
from tests.dialects.scenes import SECOND

FILE = """extends = "gog"
name = "gog-xml"

[[actions]]
kind = "glance"
via = "function_xml"
name = "image_search"
args = { image = "image" }

[[actions]]
kind = "gaze"
via = "function_xml"
name = "crop_search"
args = { box = "bbox_2d", label = "label", image = "image" }
required = ["box"]

[[actions]]
kind = "text_search"
via = "function_xml"
name = "text_search"
args = { query = "query", limit = "top_k" }
required = ["query"]

[[actions]]
kind = "visit"
via = "function_xml"
name = "visit"
args = { url = "urls" }
required = ["url"]
lists = "each"

[[actions]]
kind = "zoom"
via = "function_xml"
name = "zoom"
args = { box = ["x0", "y0", "x1", "y1"] }
required = ["box"]

[[actions]]
kind = "answer"
via = "tag"
open = "<answer>"
close = "</answer>"
"""
BOX = Region(100, 80, 500, 400)
ACTIONS = [
    Action(ActionKind.GLANCE),
    Action(ActionKind.GLANCE, image=1),
    Action(ActionKind.GAZE, "", BOX, 0, "the tower"),
    Action(ActionKind.GAZE, "", Region(64, 48, 320, 240), 1),
    Action(ActionKind.TEXT_SEARCH, 'iron "tower" {1889} <b>', limit=2),
    Action(ActionKind.TEXT_SEARCH, "1889"),
    Action(ActionKind.VISIT, "https://a.example/tower"),
    Action(ActionKind.ZOOM, "", BOX),
]
IMAGES = [PHOTO, SECOND]


@pytest.fixture()
def xml(tmp_path: Path) -> Dialect:
    path = tmp_path / "gog-xml.toml"
    path.write_text(FILE)
    return dialects.load(path)


def call(name: str, **arguments: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def test_the_form_is_the_published_one(xml: Dialect) -> None:
    assert xml.write(ACTIONS[2], IMAGES) == (
        "<tool_call>\n<function=crop_search>\n<parameter=bbox_2d>\n[100, 100, 500, 500]\n</parameter>\n"
        "<parameter=label>\nthe tower\n</parameter>\n</function>\n</tool_call>"
    )
    assert xml.write(ACTIONS[0], IMAGES) == "<tool_call>\n<function=image_search>\n</function>\n</tool_call>"


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_written_is_read_and_admitted(xml: Dialect, action: Action) -> None:
    text = xml.write(action, IMAGES)
    assert xml.parse(f"<think>a</think>\n{text}", IMAGES, user_images=2).actions == (action,)
    pytest.importorskip("llguidance")
    from tests.dialects.test_grammar import small_grammar, walk

    grammar, tokenizer = small_grammar()
    constraint = grammar.constraint(xml.grammar() or "")
    ids = tokenizer.encode(f"<think>hm</think>\n{text}", add_special_tokens=False).ids
    forced = walk(constraint, ids)
    assert constraint.complete and forced >= 6


@pytest.mark.parametrize("action", [a for a in ACTIONS if a.region is not None])
def test_a_closed_box_is_seen_at_once(xml: Dialect, action: Action) -> None:
    text = xml.write(action, IMAGES)
    seen = [xml.partial(text[:end], IMAGES) for end in range(len(text) + 1)]
    found = [box for box in seen if box is not None]
    assert found[-1] == (action.region, action.image) and seen[-1] is None
    if action.kind is ActionKind.GAZE:
        closed = text.index("]") + 1
        assert seen[closed - 1] is None and seen[closed] is not None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (call("text_search", query="a </parameter> b </tool_call> c"), ["a </parameter> b </tool_call> c"]),
        (call("text_search", query="say <tool_call> and </function>"), ["say <tool_call> and </function>"]),
        (call("text_search", query="two\nlines"), ["two lines"]),
        (call("text_search", query="a") + "\n" + call("text_search", query="b"), ["a", "b"]),
        (call("text_search", query="a").removesuffix("\n</tool_call>"), ["a"]),
        (call("text_search", query="a").replace("</tool_call>", "") + call("text_search", query="b"), ["a", "b"]),
        (call("text_search", query="a").replace("\n", ""), ["a"]),
        (call("visit", urls='["u", "v"]'), ["u", "v"]),
    ],
)
def test_values_end_at_their_own_border(xml: Dialect, text: str, wanted: list[str]) -> None:
    assert [action.text for action in xml.parse(text, [PHOTO]).actions] == wanted


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (call("nope", query="a"), "unknown_tool"),
        (call("text_search"), "argument"),
        (call("crop_search", bbox_2d="[1, 2, 3]"), "box"),
        (call("crop_search", bbox_2d="[1, 2, 300, 400]", image="9"), "image"),
        (call("text_search", query="a").replace("</function>", ""), "malformed"),
        ("<tool_call>\n<function=text_search>\n<parameter=query>\na", "malformed"),
        ('<tool_call>\n{"name": "text_search"}\n</tool_call>', "malformed"),
        ("<tool_call></tool_call>", "malformed"),
        ("<tool_call>", "malformed"),
    ],
)
def test_calls_that_can_not_be_used(xml: Dialect, text: str, label: str) -> None:
    (action,) = xml.parse(text, [PHOTO]).actions
    assert (action.kind, action.label) == (ActionKind.INVALID, label)
    if text.endswith("</tool_call>"):  # it takes no other with it
        assert xml.parse(text + call("text_search", query="b"), [PHOTO]).actions[-1].text == "b"


def test_what_the_grammar_admits_is_read(xml: Dialect) -> None:
    pytest.importorskip("llguidance")
    from tests.dialects.test_grammar import read_what_is_admitted, small_grammar

    read_what_is_admitted(xml, *small_grammar())


def test_any_cut_of_any_call_gives_a_turn(xml: Dialect) -> None:
    text = "".join(xml.write(action, IMAGES) for action in ACTIONS)
    for end in range(len(text)):
        assert xml.parse(text[:end], IMAGES).actions
        xml.partial(text[:end], IMAGES)
