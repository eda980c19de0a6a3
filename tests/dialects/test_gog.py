"""The default dialect: prompt, actions, observations, and the split of wording and outside text."""

from __future__ import annotations

import pytest

from gog_edge import dialects
from gog_edge.types import (
    ActionKind,
    Control,
    Hit,
    ImagePart,
    Observation,
    Region,
    RegisteredImage,
    Text,
)

IMAGE = RegisteredImage(0, 1000, 800, 960, 768, None, 0)
CALL = (
    '<tool_call>\n{"name": "crop_search", "arguments": {"bbox_2d": [100, 100, 500, 500], "label": "cat"}}\n</tool_call>'
)


def plain(segments) -> str:
    return "".join(f"[image {s.image}]" if isinstance(s, ImagePart) else s.text for s in segments)


def test_opening_is_short_and_holds_image_then_question() -> None:
    gog = dialects.load()
    segments = gog.opening("Which <|im_end|> bird?", 1)
    assert [type(s) for s in segments] == [Control, ImagePart, Text, Control]
    assert segments[2] == Text("Which <|im_end|> bird?")
    text = plain(segments)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert len(text) < 1000
    assert all(f'"name": "{name}"' in text for name in ("image_search", "crop_search", "text_search"))


def test_gaze_in_both_families() -> None:
    turn = dialects.load("gog", frame="thousand").parse(f"<think>\nhm\n</think>\n\n{CALL}", [IMAGE])
    assert turn.thought == "hm"
    assert turn.actions[0].kind is ActionKind.GAZE
    assert turn.actions[0].region == Region(100, 80, 500, 400)
    turn = dialects.load("gog", frame="shown").parse(CALL, [IMAGE])
    region = turn.actions[0].region
    assert region is not None
    assert region.as_tuple() == pytest.approx((100 / 0.96, 100 / 0.96, 500 / 0.96, 500 / 0.96))


def test_several_calls_and_answers() -> None:
    gog = dialects.load()
    glance = '<tool_call>\n{"name": "image_search", "arguments": {}}\n</tool_call>'
    turn = gog.parse(f"<think>a</think>{CALL}\n{glance}", [IMAGE])
    assert [a.kind for a in turn.actions] == [ActionKind.GAZE, ActionKind.GLANCE]
    assert gog.parse("<think>x</think><answer>a cat</answer>", [IMAGE]).actions[0].text == "a cat"
    assert [a.kind for a in gog.parse(f"{CALL}<answer>early</answer>", [IMAGE]).actions] == [ActionKind.GAZE]


def test_observation_shows_the_crop_first_and_numbers_results() -> None:
    gog = dialects.load()
    turn = gog.parse(CALL, [IMAGE])
    hit = Hit("Cat", "A small\nanimal.", "http://x", 0.834)
    out = gog.observe(turn, [Observation(turn.actions[0], (hit, Hit("Dog", "Barks.")), shown=1)])
    assert plain(out) == (
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n[image 1]\n1. Cat (score 0.83)\nA small\nanimal.\n"
        "2. Dog\nBarks.\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    empty = plain(gog.observe(turn, [Observation(turn.actions[0])]))
    assert "<tool_response>\nNo results.\n</tool_response>" in empty
    failed = plain(gog.observe(turn, [Observation(turn.actions[0], error="HTTP 500", shown=1)]))
    assert "[image 1]\nThe search failed." in failed


def test_forced_answer_is_parsed_with_its_prefix() -> None:
    gog = dialects.load()
    assert plain(gog.forced_answer()).endswith("<|im_start|>assistant\n<answer>")
    assert gog.parse("a cat</answer>", [IMAGE], forced=True).actions[0].text == "a cat"
    assert gog.parse("a cat", [IMAGE], forced=True).actions[0].text == "a cat"


def test_boxes_round_trip() -> None:
    for frame in ("thousand", "shown"):
        gog = dialects.load("gog", frame=frame)
        assert gog.format_box(Region(100, 80, 500, 400), IMAGE) == (
            "[100, 100, 500, 500]" if frame == "thousand" else "[96, 77, 480, 384]"
        )


def test_partial() -> None:
    gog = dialects.load()
    head = '<think>x</think><tool_call>\n{"name": "crop_search", "arguments": {"bbox_2d": [100, 100, 500, 500]'
    assert gog.partial(head[:-1], [IMAGE]) is None
    assert gog.partial(head, [IMAGE]) == (Region(100, 80, 500, 400), 0)
    assert gog.partial(CALL, [IMAGE]) is None
