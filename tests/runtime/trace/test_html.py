"""The trace page: everything is there, drawn at the right place, and nothing hostile becomes markup."""

from __future__ import annotations

import re

import numpy as np

from gog_edge.image.frame import Frame
from gog_edge.runtime.telemetry import Trace, TracedImage
from gog_edge.runtime.trace.html import page
from gog_edge.types import (
    Action,
    ActionKind,
    Answer,
    Hit,
    Observation,
    Region,
    RegisteredImage,
    Step,
    StopReason,
    Turn,
)

HOSTILE = "</pre><script>alert(1)</script><img src=http://evil/x>"


def traced() -> Trace:
    frame = Frame(np.zeros((60, 80, 3), np.uint8), "black")
    trace = Trace(f"What is this? {HOSTILE}")
    box = Region(10, 20, 30, 40)
    trace.image(TracedImage(RegisteredImage(0, 80, 60, 64, 64, None, 0), frame, "d", 4))
    trace.image(TracedImage(RegisteredImage(1, 80, 60, 32, 32, box, 0), frame, "d", 1))
    with trace.span("search", provider=HOSTILE):
        pass
    trace.token(HOSTILE, (1, 2), forced=True)
    gaze = Action(ActionKind.GAZE, region=box, label=HOSTILE)
    hit = Hit(HOSTILE, HOSTILE, HOSTILE, 0.5)
    steps = (
        Step(0, Turn(HOSTILE, (gaze,), HOSTILE), (Observation(gaze, (hit,), shown=1),)),
        Step(1, Turn("", (Action(ActionKind.ANSWER, HOSTILE),), HOSTILE)),
    )
    trace.answer = Answer(HOSTILE, StopReason.ANSWERED, steps, (hit,))
    trace.note(HOSTILE)
    trace.meta = {"bundle": HOSTILE}
    return trace


def test_hostile_text_stays_text() -> None:
    text = page(traced())
    assert "<script" not in text
    assert "http://evil" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert "default-src 'none'" in text
    assert re.findall(r"<(?!/?(?:!doctype|html|meta|title|style|h1|h2|div|p|ul|ol|li|b|i|span|img|svg|rect|text|line|"
                      r"title|table|tr|td|th|details|summary|pre|s)\b)[^>]*>", text) == []  # fmt: skip


def test_boxes_are_drawn_in_the_pixels_of_the_frame() -> None:
    text = page(traced())
    assert 'viewBox="0 0 80 60"' in text
    assert '<rect x="10.0" y="20.0" width="20.0" height="20.0"' in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert "answered by itself" in text


def test_an_unfinished_question_has_a_page() -> None:
    assert "unfinished" in page(Trace("still running"))


def test_the_page_fits_a_phone_and_follows_dark_mode() -> None:
    text = page(traced())
    assert '<meta name=viewport content="width=device-width' in text
    style = text.partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    names = set(re.findall(r"(--[a-z]+):", light))
    assert names and names == set(re.findall(r"(--[a-z]+):", dark.partition("} }")[0])) | {"--c"} - {"--c"}
    rules = dark.partition("} }")[2]
    assert not re.search(r"(?:color|background|fill): #", rules)  # colours of the page are variables
    assert "<div class=wide><svg class=timeline" in text  # the time line scrolls by itself
