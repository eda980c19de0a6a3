"""The request: declared once, spelled out for users."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gog_edge import AskRequest
from gog_edge.agent.agent import Agent, Conversation
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Exchange
from tests.agent.test_loop import ANSWER
from tests.runtime.conftest import MakeAgent


@pytest.mark.parametrize("method", ["ask", "stream"])
def test_methods_take_the_fields_of_a_request(method: str) -> None:
    fields = list(inspect.signature(AskRequest).parameters.values())
    assert [p.name for p in fields[:2]] == ["image", "question"]
    assert list(inspect.signature(getattr(Agent, method)).parameters.values())[1:] == fields
    assert list(inspect.signature(getattr(Conversation, method)).parameters.values())[1:] == fields[1:]
    assert "AskRequest" in str(getattr(Agent, method).__doc__) or method == "stream"


def test_a_request_and_its_arguments_are_the_same(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER])
    spelled = agent.ask(image=frame, question="q", max_turns=1)
    with agent.session(frame) as conversation:
        again = conversation.ask("q", max_turns=1)
        events = list(conversation.events(AskRequest(None, "q", max_turns=1)))
    whole = list(agent.events(AskRequest([frame], "q", max_turns=1)))
    assert spelled.text == again.text == events[-1].answer.text == whole[-1].answer.text == "fish"  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="deadlin"):
        agent.ask(frame, "q", deadlin=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"question": "  "}, "the question is empty"),
        ({"deadline": 0}, "a deadline of 0 s"),
        ({"deadline": float("nan")}, "a deadline of nan s"),
        ({"max_turns": 0}, "max_turns is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    make_agent: MakeAgent, frame: Frame, wrong: dict[str, Any], says: str
) -> None:
    agent = make_agent([ANSWER])
    with pytest.raises(UsageError, match=says):
        agent.ask(frame, **{"question": "q", **wrong})
    with pytest.raises(UsageError, match="no image was given"):
        agent.ask([], "q")
    assert agent.model.engine.decoder.runs == []  # type: ignore[attr-defined]


def test_bgr_reaches_the_frame(make_agent: MakeAgent) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    traces = [Trace(), Trace(), Trace()]
    agent = make_agent([ANSWER])
    agent.ask(pixels, "q", bgr=True, trace=traces[0])
    agent.ask(Frame.from_cv2(pixels), "q", trace=traces[1])
    list(agent.stream(pixels, "q", bgr=False, trace=traces[2]))
    frames = [t.images[0].frame for t in traces]
    assert frames[0] == frames[1] != frames[2]
    with agent.session(pixels, bgr=True) as session:
        assert session.frames[0] == frames[0]


@pytest.mark.parametrize(
    ("images", "counts", "left"),
    [
        (["a"], (1,), ["a"]),
        (["a", "b"], (1, 0), ["b"]),
        (["a", "b", "c"], (1, 2, 0), ["b", "c"]),
        (["a", "b", "c"], (2, 0), ["c"]),
        (["a"], (0, 0), ["a"]),
        ("a", (1,), ["a"]),
        (None, (1,), None),
    ],
)
def test_alone_a_question_has_the_pictures_that_came_last(images: Any, counts: tuple[int, ...], left: Any) -> None:
    earlier = [Exchange("Before?", "Yes.", count) for count in counts]
    request = AskRequest(images, "Why?", earlier=earlier, system="Be short.", urls=["u1", "u2", "u3"])
    alone = request.alone()
    assert (alone.image, alone.earlier, alone.system) == (left, (), "Be short.")
    if len(images or "") == 3:
        assert alone.urls == ["u1", "u2", "u3"][3 - len(left) :]
    assert alone.alone() is alone


def test_a_policy_that_can_not_follow_is_asked_alone(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER] * 9, keep_sessions=0)
    before = [Exchange("Which bird is that?", "A heron.", 1)]

    def read(earlier: list[Exchange]) -> list[int]:
        with agent.session(frame) as session:
            answers = [agent.ask(frame, "Why?", earlier=earlier), session.ask("Why?", earlier=earlier)]
        return [answer.usage.prompt_tokens + answer.usage.reused_tokens for answer in answers]

    alone = read([])
    assert all(more > less for more, less in zip(read(before), alone))
    prompt = replace(agent.dialect.spec.prompt, follow_up=False)
    agent.dialect = replace(agent.dialect, spec=replace(agent.dialect.spec, prompt=prompt))
    assert read(before) == alone


def test_an_earlier_question_has_no_fewer_images_than_none() -> None:
    with pytest.raises(UsageError, match="-1 images"):
        Exchange("What?", "A boat.", -1)


CIRCLE: dict[str, Any] = {}
CIRCLE["allOf"] = [CIRCLE]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("object", "must be that of an object"),
        ([], "must be that of an object"),
        ({"type": ["object", "null"]}, "must be that of an object"),
        ({"default": object()}, "can't be written as JSON"),
        (CIRCLE, "can't be written as JSON"),
        ({"properties": {"a": {"type": "tensor"}}}, "^answers can't follow this JSON schema: Invalid type"),
    ],
)
def test_what_is_no_schema_of_an_object_is_refused(
    make_agent: MakeAgent, frame: Frame, schema: Any, message: str
) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(UsageError, match=message):
        make_agent([ANSWER]).ask(frame, "q", schema=schema)
