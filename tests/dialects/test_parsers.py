"""Reading turns: several calls, malformed ones, rules of precedence; any text gives a typed result (property)."""

# ruff: noqa: E501 - literal calls and replies

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gog_edge import dialects
from gog_edge.dialects.syntax.borders import load_json
from gog_edge.types import Action, ActionKind, Region, RegisteredImage, Turn
from tests.dialects.helpers import PHOTO

GLANCE = '<tool_call>\n{"name": "image_search", "arguments": {}}\n</tool_call>'
SEARCH = '<tool_call>\n{"name": "text_search", "arguments": {"query": "a"}}\n</tool_call>'


def gog(text: str, images=(PHOTO,), **keys) -> Turn:
    return dialects.load("gog").parse(text, list(images), **keys)


def kinds(turn: Turn) -> list[str]:
    return [action.kind.value for action in turn.actions]


def only(turn: Turn) -> Action:
    assert len(turn.actions) == 1, turn
    return turn.actions[0]


def test_reasoning_with_without_and_unfinished() -> None:
    assert gog(f"<think>a\nb</think>{GLANCE}").thought == "a\nb"
    assert gog(f"a\nb</think>\n\n{GLANCE}").thought == "a\nb"  # the template opened it
    assert gog(f"I look. {GLANCE}").thought == "I look."
    assert only(gog("<think>still thinking")).kind is ActionKind.INVALID
    assert only(gog("")).kind is ActionKind.INVALID
    turn = gog(f"<think>maybe {GLANCE}? no</think>{SEARCH}")
    assert kinds(turn) == ["text_search"]  # a call in the reasoning is not a call


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{GLANCE}\n{SEARCH}", ["glance", "text_search"]),
        ('<tool_call>\n{"name": "image_search"}\n{"name": "text_search", "arguments": {"query": "a"}}\n</tool_call>', ["glance", "text_search"]),
        ('<tool_call>[{"name": "image_search"}, {"name": "image_search"}]</tool_call>', ["glance", "glance"]),
        ('<tool_call>{"name": "image_search", "arguments": "{}"}</tool_call>', ["glance"]),
        ("<tool_call>{'name': 'image_search', 'arguments': {},}</tool_call>", ["glance"]),
        ('<tool_call>```json\n{"name": "image_search"}\n```</tool_call>', ["glance"]),
        ('<tool_call>{"name": "image_search", "arguments": {}}', ["glance"]),  # the stop string was taken off
        (f"{GLANCE}<answer>x</answer>", ["glance"]),
        (f"<answer>x</answer>{GLANCE}", ["answer"]),
        ("<answer>cut at the token limit", ["answer"]),
        (f'<tool_call>{{"name": "oops"</tool_call>{GLANCE}', ["invalid", "glance"]),
    ],
)  # fmt: skip
def test_calls_of_a_turn(text: str, wanted: list[str]) -> None:
    assert kinds(gog(text)) == wanted


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        ('{"name": "nope", "arguments": {}}', "There is no tool nope."),
        ('{"name": "text_search", "arguments": {}}', "The call can not be used: 'query' is missing."),
        ('{"name": "text_search", "arguments": {"query": "  "}}', "The call can not be used: the call has no text."),
        ('{"name": "crop_search", "arguments": {"bbox_2d": [1, 2, 3]}}', "The box can not be used: a box is a list of four numbers, not [1, 2, 3]."),
        ('{"name": "crop_search", "arguments": {"bbox_2d": [5, 5, 5, 9]}}', "The box can not be used: the box [5, 5, 5, 9] is empty."),
        ('{"name": "crop_search", "arguments": {"bbox_2d": [1, 2, 3, 4], "image": 9}}', "The image can not be used: there is no image '9'; the images are 1."),
        ("{", "No tool call or answer could be read. Call one tool or finish with <answer></answer>."),
        ('["image_search"]', "No tool call or answer could be read. Call one tool or finish with <answer></answer>."),
        ('{"name": "image_search", "arguments": [1]}', "No tool call or answer could be read. Call one tool or finish with <answer></answer>."),
    ],
)  # fmt: skip
def test_typed_error_replies(call: str, reply: str) -> None:
    action = only(gog(f"<tool_call>{call}</tool_call>"))
    assert action.kind is ActionKind.INVALID
    assert action.text == reply


def test_inverted_boxes_are_swapped_and_large_ones_clamped() -> None:
    call = '<tool_call>{"name": "crop_search", "arguments": {"bbox_2d": [500, 500, 100, 2000]}}</tool_call>'
    assert only(gog(call)).region == Region(100, 400, 500, 800)


def test_mmsearch_calls_count_at_the_end_only() -> None:
    read = dialects.load("mmsearch-r1").parse
    assert kinds(read("<reason>r</reason> <search><img></search>", [PHOTO])) == ["glance"]
    assert kinds(read("<search><img></search> and more", [PHOTO])) == ["answer"]
    both = "<text_search>a</text_search><text_search>b</text_search>"
    assert only(read(both, [PHOTO])).text == "b"
    turn = read("<reason>r</reason><answer>x</answer>", [PHOTO])
    assert (turn.thought, only(turn).text) == ("r", "x")
    assert only(read("Unable to answer due to lack of relevant information", [PHOTO])).kind is ActionKind.ANSWER


def test_a_thinking_checkpoint_reasons_in_its_own_tags() -> None:
    """MMSearch-R1's tags behind a template that opens <think>: what is weighed in the reasoning is no call."""
    read = dialects.load("gog-mmsearch").parse
    turn = read("maybe <search>[1, 2, 300, 400] it</search>?\n</think>\n\n<text_search>a</text_search>", [PHOTO])
    assert (kinds(turn), turn.thought) == (["text_search"], "maybe <search>[1, 2, 300, 400] it</search>?")
    turn = read("<think>a</think><answer>x</answer>", [PHOTO])
    assert (turn.thought, only(turn).text) == ("a", "x")
    assert read("<reason>a</think>b</reason><answer>x</answer>", [PHOTO]).thought == "a</think>b"


def test_deepmmsearch_regions() -> None:
    dialect = dialects.load("deepmmsearch-r1", frame="shown")
    action = only(dialect.parse("<img_search>the red car</img_search>", [PHOTO]))
    assert action.kind is ActionKind.INVALID and "[x1, y1, x2, y2] the red car" in action.text
    action = only(dialect.parse("<img_search>[96, 96, 480, 480] the red car</img_search>", [PHOTO]))
    assert (action.region, action.label) == (Region(100, 100, 500, 500), "the red car")
    assert kinds(dialect.parse("<img_search><img></img_search>", [PHOTO])) == ["glance"]


def test_deepeyes_takes_the_last_call_and_any_answer() -> None:
    read = dialects.load("deepeyes").parse
    call = '<tool_call>{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": {}}}}}</tool_call>'
    turn = read(call.format([0, 0, 100, 100]) + call.format([0, 0, 200, 200]), [PHOTO])
    assert only(turn).region == Region(0, 0, 200, 200)
    assert only(read(call.format([0, 0, 9, 9]) + "<answer>x</answer>", [PHOTO])).text == "x"
    assert only(read("just words", [PHOTO])) == Action(ActionKind.ANSWER, "just words")


def test_vision_deepresearch_carries_out_a_call_beside_an_answer() -> None:
    call = '<tool_call>\n{"name": "search", "arguments": {"query": ["a"]}}\n</tool_call>'
    for text in (f"{call}<answer>b</answer>", f"<answer>b</answer>{call}"):
        assert kinds(dialects.load("vision-deepresearch").parse(text, [PHOTO])) == ["text_search"]
    assert kinds(dialects.load("vision-deepresearch").parse("<answer>b</answer>", [PHOTO])) == ["answer"]


def test_vrag_boxes_are_pixels_of_the_last_image_and_padded() -> None:
    page = RegisteredImage(1, 2000, 1000, 500, 250, None, 1)
    action = only(dialects.load("vrag-rl").parse("<bbox>[100, 50, 200, 100]</bbox>", [PHOTO, page]))
    assert (action.image, action.region) == (1, Region(344, 144, 856, 456))


def test_pixel_reasoner_falls_back_to_pixels() -> None:
    read = dialects.load("pixel-reasoner").parse
    call = '<tool_call>{{"name": "{}", "arguments": {{"bbox_2d": {}, "target_image": 1}}}}</tool_call>'
    relative = only(read(call.format("crop_image_normalized", [0.4, 0.4, 0.6, 0.6]), [PHOTO]))
    pixels = only(read(call.format("zoom_in", [400, 320, 600, 480]), [PHOTO]))
    assert relative.region == pixels.region == Region(300, 240, 700, 560)
    assert only(read("so it is \\boxed{\\frac{1}{2}}.", [PHOTO])).text == "\\frac{1}{2}"


def test_lists_are_several_actions_where_the_system_does_so() -> None:
    call = '<tool_call>{"name": "search", "arguments": {"query": ["a", "b"]}}</tool_call>'
    assert [a.text for a in dialects.load("vision-deepresearch").parse(call, [PHOTO]).actions] == ["a", "b"]
    call = '<tool_call>{"name": "web_search", "arguments": {"queries": ["a", "b"]}}</tool_call>'
    assert [a.text for a in dialects.load("webwatcher").parse(call, [PHOTO]).actions] == ["a"]


def test_python_is_refused_in_the_systems_words() -> None:
    call = '<tool_call>\n{"name": "PythonInterpreter", "arguments": {}}\n<code>\nprint(1)\n</code>\n</tool_call>'
    action = only(dialects.load("vision-deepresearch").parse(call, [PHOTO]))
    assert (action.kind, action.text) == (ActionKind.INVALID, "PythonInterpreter tool not available")


def test_opensearch_xywh_and_refused_tools() -> None:
    read = dialects.load("opensearch-vl").parse
    call = '<tool_call>{"name": "crop", "arguments": {"image": "img_1", "x": 100, "y": 80, "width": 400, "height": 320}}</tool_call>'
    assert only(read(call, [PHOTO])).region == Region(100, 80, 500, 400)
    refused = only(read('<tool_call>{"name": "sharpen", "arguments": {"image": "img_1"}}</tool_call>', [PHOTO]))
    assert refused.text == "Tool execution error:\nsharpen is not available."
    assert kinds(read("<response>x</response>" + call, [PHOTO])) == ["answer"]


FRAGMENTS = [
    "<think>", "</think>", "<reason>", "</reason>", "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<code>",
    "</code>", "<grounding>", "</grounding>", "<search>", "<img>", "</search>", "<bbox>", "</bbox>", "<text_search>",
    "</text_search>", "<img_search>", "</img_search>", "<response>", "\\boxed{", "}", "{", "[", "]", '"', "'", ",", ":",
    '{"name": "crop_search", "arguments": {"bbox_2d": [', "1, 2, 3, 4", "NaN", "1e999", "null", "\n", "```python\n", "```",
    "image_1.crop(", "crop(raw_image, ", "plt.imshow(", ")", "\u0000", "\ud800", "<tool_response>", "[" * 50, "9" * 400,
]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(dialects.names()), st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=14)
)
@example("gog", ["<tool_call>", "[" * 100_000, "</tool_call>"])
@example("gog", ["<tool_call>", '{"a":' * 5_000, "</tool_call>"])
@example(
    "gog", ["<tool_call>", '{"name": "crop_search", "arguments": {"bbox_2d": [', "9" * 5000, ", 1, 2, 3]}}</tool_call>"]
)
@example("agile", ["<code>", "(" * 5_000, "</code>"])
@example("agile", ["<code>", "x = 1" + "+1" * 1500, "</code>"])
def test_any_text_gives_a_typed_turn(name: str, pieces: list[str]) -> None:
    dialect = dialects.load(name)
    text = "".join(pieces)
    for images in ([PHOTO], [PHOTO, RegisteredImage(1, 1000, 800, 448, 352, Region(9, 9, 99, 99), 0)], []):
        turn = dialect.parse(text, images)
        assert turn.raw == text and turn.actions
        for action in turn.actions:
            assert isinstance(action.kind, ActionKind)
            if action.region is not None:
                view = images[action.image].view
                assert view.x0 - 1e-6 <= action.region.x0 < action.region.x1 <= view.x1 + 1e-6
        assert dialect.parse(text, images, forced=True).actions[0].kind is ActionKind.ANSWER
        dialect.partial(text, images)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(dialects.names()))
def test_what_a_dialect_writes_it_reads(data, name: str) -> None:
    dialect = dialects.load(name)
    line = st.text(
        st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="<>[]{}\\"),
        min_size=1,
        max_size=20,
    )
    kind = data.draw(st.sampled_from(sorted({a.kind for a in dialect.spec.actions} - {"refuse"}) or ["answer"]))
    padded = dialect.frame.hooks.padding(PHOTO.view) != (0, 0)
    region = None
    if kind in ("gaze", "zoom"):
        x0, y0 = data.draw(st.integers(0, 600)), data.draw(st.integers(0, 400))
        region = Region(x0, y0, x0 + data.draw(st.integers(60, 300)), y0 + data.draw(st.integers(60, 300)))
    text = "" if kind in ("gaze", "zoom", "glance") else data.draw(line)
    action = Action(ActionKind(kind), text, region)
    read = only(dialect.parse(dialect.write(action, [PHOTO]), [PHOTO]))
    assert (read.kind, read.text, read.image) == (action.kind, action.text, 0)
    if region is not None and read.region is not None and not padded:
        for edge in ("x0", "y0", "x1", "y1"):  # two decimals of 0-1 are steps of 10 pixels of 1000
            assert abs(getattr(read.region, edge) - getattr(region, edge)) <= 5.001


def test_json_of_policies() -> None:
    assert load_json('{"a": 1}') == {"a": 1}
    assert load_json("```json\n{'a': (1, 2)}\n```") == {"a": (1, 2)}
    assert load_json('{"a": "line\nbreak"}') == {"a": "line\nbreak"}
    for text in ("", "{", "nope", "__import__('os')", "[" * 100_000, "x" * 30_000):
        with pytest.raises(ValueError):
            load_json(text)
    assert json.loads('{"a": NaN}')["a"] != 0  # the reader takes NaN; boxes refuse it


def test_partiales() -> None:
    dialect = dialects.load("gog")
    head = '<tool_call>\n{"name": "crop_search", "arguments": {"bbox_2d": [100, 100, 500, 500'
    assert dialect.partial(head, [PHOTO]) is None
    assert dialect.partial(head + "]", [PHOTO]) == (Region(100, 80, 500, 400), 0)
    assert dialect.partial(head + "]}}\n</tool_call>", [PHOTO]) is None
    assert dialect.partial(head.replace("500, 500", "100, 500") + "]", [PHOTO]) is None  # an empty box
    assert dialects.load("vrag-rl").partial("<bbox>[0, 0, 96, 96]", [PHOTO]) == (Region(0, 0, 156, 156), 0)
    text = '<grounding>{"bbox_2d": [0.1, 0.1, 0.5, 0.5], "source"'
    assert dialects.load("mini-o3").partial(text, [PHOTO]) == (Region(100, 80, 500, 400), 0)


@pytest.mark.parametrize(
    "name", [n for n in dialects.names() if {a.kind for a in dialects.load(n).spec.actions} & {"gaze", "zoom"}]
)
def test_every_dialects_box_is_seen_before_its_call_ends(name: str) -> None:
    """Written letter by letter: the early box comes once it is closed, and is that of the finished call."""
    dialect = dialects.load(name)
    kind = next(ActionKind(a.kind) for a in dialect.spec.actions if a.kind in ("gaze", "zoom"))
    call = dialect.write(Action(kind, "", Region(100, 80, 500, 400), 0, "the tower"), [PHOTO])
    done = only(dialect.parse(call, [PHOTO]))
    seen = [dialect.partial(call[:end], [PHOTO]) for end in range(len(call) + 1)]
    found = [box for box in seen if box is not None]
    assert found and set(found) == {(done.region, done.image)}
    assert seen[-1] is None  # a finished call speaks for itself
