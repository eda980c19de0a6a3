"""OpenAI's responses: what becomes of input items, the order of events, and failures; with the real client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.agent.request import AskRequest
from gog_edge.errors import EngineError
from gog_edge.types import Answer, AnswerEvent, Event, Exchange, StopReason, TextEvent, TokenEvent, Usage
from tests.serve.over_http import Policy, post, serving, talk

openai = pytest.importorskip("openai")

URL = "data:image/png;base64," + base64.b64encode(b"picture").decode()
IMAGE = {"type": "input_image", "image_url": URL, "detail": "auto"}
QUESTION: dict[str, Any] = {"role": "user", "content": [IMAGE, {"type": "input_text", "text": "What is it?"}]}
USAGE = Usage(prompt_tokens=5, generated_tokens=9, reused_tokens=2)


def writing(*pieces: str, fails: Exception | None = None) -> Policy:
    def events(_: AskRequest) -> Iterator[Event]:
        for piece in pieces:
            yield TokenEvent(0, piece)
            yield TextEvent(0, piece)
        if fails is not None:
            raise fails
        yield AnswerEvent(Answer("".join(pieces), StopReason.ANSWERED, usage=USAGE))

    return Policy(instead=events)


def client(port: int) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=60)


def test_a_conversation_is_read_and_answered() -> None:
    policy = writing("a ", "boat")
    with serving(policy) as port, client(port) as ai:
        first = ai.responses.create(model="x", input=[QUESTION], instructions="Be short.", metadata={"a": "b"})
        again = [QUESTION, *(item.to_dict() for item in first.output), {"role": "user", "content": "Which colour?"}]
        second = ai.responses.create(model="x", input=again, temperature=0, max_output_tokens=20)
    assert first.output_text == "a boat" and (first.status, first.error) == ("completed", None)
    assert first.instructions == "Be short." and first.metadata == {"a": "b"}
    assert (first.usage.input_tokens, first.usage.output_tokens, first.usage.total_tokens) == (7, 9, 16)
    assert first.usage.input_tokens_details.cached_tokens == 2
    assert second.temperature == 0 and second.max_output_tokens == 20 and second.id != first.id
    assert [(r.question, r.system, r.earlier, r.image) for r in policy.asked] == [
        ("What is it?", "Be short.", (), [b"picture"]),
        ("Which colour?", "", (Exchange("What is it?", "a boat", 1),), [b"picture"]),
    ]
    assert "gog_edge" in first.to_dict()


def test_the_events_of_a_stream_are_openais_in_their_order() -> None:
    with serving(writing("a ", "boat")) as port, client(port) as ai:
        events = list(ai.responses.create(model="x", input=[QUESTION], stream=True))
        with ai.responses.stream(model="x", input=[QUESTION]) as stream:  # the client's own accumulator agrees
            final = stream.get_final_response()
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(10))
    assert events[6].text == events[-1].response.output_text == final.output_text == "a boat"
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {events[2].item.id}


def test_a_limit_that_ends_the_answer_makes_it_incomplete() -> None:
    with serving(writing("a ", "boat")) as port, client(port) as ai:
        whole = ai.responses.create(model="x", input=[QUESTION], max_output_tokens=9)
        *_, last = ai.responses.create(model="x", input=[QUESTION], max_output_tokens=9, stream=True)
        nothing = ai.responses.create(model="x", input=[QUESTION], max_output_tokens=10)
    assert whole.status == last.response.status == "incomplete" and last.type == "response.incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens" and whole.output_text == "a boat"
    assert nothing.status == "completed"


def test_a_failure_on_the_way_is_an_event_and_names_nothing_of_this_machine() -> None:
    with serving(writing("a ", fails=EngineError("can't run /srv/x.onnx"))) as port, client(port) as ai:
        *_, last = ai.responses.create(model="x", input=[QUESTION], stream=True)
        with pytest.raises(openai.InternalServerError):
            ai.responses.create(model="x", input=[QUESTION])
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and "/srv" not in last.response.error.message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("What is it?", "no image"),
        ([{"role": "user", "content": [IMAGE]}], "no text"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "file_id"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "https://a.example/b.png"}]}], "no text"),
        ([QUESTION, {"type": "function_call_output", "call_id": "1", "output": "7"}], "function_call_output"),
        ([{"type": "item_reference", "id": "msg_1"}], "item_reference"),
        ([{"role": "user", "content": [IMAGE, {"type": "input_file", "file_id": "x"}]}], "input_file"),
        ([{"role": "user", "content": [IMAGE, {"type": "input_text"}]}], "not understood"),
        ([7], "not understood"),
        ([{**QUESTION, "type": {"a": []}}], "not understood"),
    ],
)
def test_input_that_is_no_conversation_with_a_picture_is_refused(value: Any, says: str) -> None:
    with serving(writing("x")) as port:
        reply = talk(port, post("/v1/responses", {"input": value}))
    assert reply.status == 400 and says in reply.json["error"]["message"] and reply.json["error"]["param"] == "input"


def test_nothing_is_stored() -> None:
    with serving(writing("x")) as port, client(port) as ai:
        stored = ai.responses.create(model="x", input=[QUESTION], store=True)
        assert stored.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            ai.responses.retrieve(stored.id)
        with pytest.raises(openai.BadRequestError, match="whole conversation"):
            ai.responses.create(model="x", input=[QUESTION], previous_response_id=stored.id)
