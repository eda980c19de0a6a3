"""An answer's text reaches the client while it is written: each piece before the next one exists."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.agent.agent import Agent
from gog_edge.agent.request import AskRequest
from gog_edge.types import Answer, AnswerEvent, Event, StopReason, TextEvent, TokenEvent
from tests.runtime.conftest import MakeAgent, bundle, make_agent
from tests.runtime.fakes import FakeProvider
from tests.serve.over_http import BODY, CHAT, SECONDS, Policy, connect, post, read, serving, talk, until

openai = pytest.importorskip("openai")
__all__ = ["bundle", "make_agent"]  # the scripted policy of the runtime's tests

SEARCH = '<think>\nhm\n</think>\n<tool_call>\n{"name": "text_search", "arguments": {"query": "x"}}\n</tool_call>'
SAID = "It is a heron <that> eats fish, and a < b."
ANSWER = f"<think>\nfound\n</think>\n<answer>{SAID}</answer>"
TURNS = [SEARCH, ANSWER]


@dataclass
class Stepwise:
    """A policy that does not go on before the client says that it has the last piece."""

    agent: Agent
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    written: int = 0
    late: int = 0
    tokens_at_first: int = 0

    def events(self, request: AskRequest) -> Iterator[Event]:
        tokens = 0
        for event in self.agent.events(request):
            tokens += isinstance(event, TokenEvent)
            if isinstance(event, TextEvent):
                self.tokens_at_first = self.tokens_at_first or tokens
                self.written += 1
                yield event
                self.late += not self.arrived.acquire(timeout=SECONDS)
            else:
                yield event


@pytest.fixture
def stepwise(make_agent: MakeAgent) -> Stepwise:
    return Stepwise(make_agent(TURNS, [FakeProvider()]))


@pytest.fixture
def photo_part(photo: Any) -> dict[str, Any]:
    import base64

    url = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def asks(stepwise: Stepwise, read_pieces: Callable[[Any], Iterator[str]]) -> list[str]:
    """The pieces that a client got, one while no further one was written."""
    pieces = []
    with ExitStack() as stack:
        port = stack.enter_context(serving(stepwise))  # type: ignore[arg-type]
        address = f"http://127.0.0.1:{port}/v1"
        client = stack.enter_context(openai.OpenAI(base_url=address, api_key="x", max_retries=0, timeout=120))
        for piece in read_pieces(client):
            pieces.append(piece)
            assert stepwise.written == len(pieces)  # the policy waits: nothing was held back or sent ahead
            stepwise.arrived.release()
    assert stepwise.late == 0
    return pieces


def test_a_chat_completion_comes_token_by_token(stepwise: Stepwise, photo_part: dict[str, Any]) -> None:
    messages: list[Any] = [{"role": "user", "content": [photo_part, {"type": "text", "text": "What is it?"}]}]

    def pieces(client: Any) -> Iterator[str]:
        for chunk in client.chat.completions.create(model="x", messages=messages, stream=True):
            if chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    got = asks(stepwise, pieces)
    assert "".join(got) == SAID and len(got) > 10
    assert stepwise.tokens_at_first > 20  # reasoning and the call were written before, and not shown


def test_a_response_comes_token_by_token(stepwise: Stepwise, photo_part: dict[str, Any]) -> None:
    image = {"type": "input_image", "image_url": photo_part["image_url"]["url"], "detail": "auto"}
    said: list[Any] = [{"role": "user", "content": [image, {"type": "input_text", "text": "What is it?"}]}]

    def pieces(client: Any) -> Iterator[str]:
        for event in client.responses.create(model="x", input=said, stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta

    got = asks(stepwise, pieces)
    assert "".join(got) == SAID and len(got) > 10


def test_the_pieces_of_python_are_the_answer(make_agent: MakeAgent, photo: Any) -> None:
    events = list(make_agent(TURNS, [FakeProvider()]).stream(photo, "What is it?"))
    assert "".join(e.text for e in events if isinstance(e, TextEvent)) == SAID
    assert events[-1].answer.text == SAID  # type: ignore[union-attr]
    first = next(i for i, e in enumerate(events) if isinstance(e, TextEvent))
    assert sum(isinstance(e, TokenEvent) for e in events[first:]) > 10  # most of it is still to be written then


def pieces_of(*pieces: str, text: str | None = None) -> Policy:
    said = "".join(pieces) if text is None else text
    events = [*(TextEvent(0, piece) for piece in pieces), AnswerEvent(Answer(said, StopReason.ANSWERED))]
    return Policy(instead=lambda _: iter(events))


@pytest.mark.parametrize(
    ("stop", "deltas"),
    [
        ("and", ["a bo", "at ", "a"]),
        (["zz", "nds"], ["a bo", "at ", "a"]),
        ("a b", []),
        ("ship", ["a bo", "at ", "a", "n", "ds"]),
    ],
)
def test_a_stop_string_is_never_shown_not_even_half(stop: Any, deltas: list[str]) -> None:
    with serving(pieces_of("a bo", "at ", "a", "n", "ds")) as port:
        reply = talk(port, post("/v1/chat/completions", {**CHAT, "stream": True, "stop": stop}))
        whole = talk(port, post("/v1/chat/completions", {**CHAT, "stop": stop})).json
    got = [c["choices"][0]["delta"].get("content") for c in reply.events]
    assert (
        "".join(filter(None, got))
        == whole["choices"][0]["message"]["content"]
        == "".join({"and": ["a boat "], "a b": []}.get(str(stop), ["a boat a"] if isinstance(stop, list) else deltas))
    )


def test_a_client_that_hangs_up_in_the_middle_of_the_text_cancels_its_question() -> None:
    policy = Policy()

    def writes(request: AskRequest) -> Iterator[Event]:
        assert request.budget is not None
        for number in range(100_000):
            yield TextEvent(0, f"{number} ")
            if request.budget.cancelled:
                policy.cancelled += 1
                yield AnswerEvent(Answer("", StopReason.CANCELLED))
                return
            policy.let_go.wait(0.01)

    policy.instead = writes
    with serving(policy, queue=0) as port:
        for path, body in (("/v1/ask", BODY), ("/v1/chat/completions", CHAT)):
            cancelled = policy.cancelled
            with connect(port) as leaving:
                leaving.sendall(post(path, {**body, "stream": True}))
                data = b""
                while b"20 " not in data:
                    data += leaving.recv(65536)
            until(lambda before=cancelled: policy.cancelled == before + 1)  # type: ignore[misc]


@pytest.mark.parametrize("path", ["/v1/ask", "/v1/chat/completions"])
def test_a_client_that_closes_half_of_its_connection_has_left(path: str) -> None:
    policy = Policy()
    body = BODY if path == "/v1/ask" else CHAT
    with serving(policy, queue=0) as port, connect(port) as half:
        half.sendall(post(path, {**body, "stream": True}))
        until(lambda: bool(policy.asked))
        half.shutdown(socket.SHUT_WR)
        until(lambda: policy.cancelled == 1)
        assert b"[DONE]" not in b"".join(iter(lambda: half.recv(65536), b""))
        policy.let_go.set()
        until(lambda: talk(port, post(path, body)).status == 200)


def test_two_streams_at_once_stay_apart() -> None:
    def writes(request: AskRequest) -> Iterator[Event]:
        for word in request.question.split():
            yield TextEvent(0, f"{word} ")
        yield AnswerEvent(Answer(request.question + " ", StopReason.ANSWERED))

    with serving(Policy(instead=writes)) as port, connect(port) as first, connect(port) as second:
        for connection, words in ((first, "a b c"), (second, "d e f")):
            parts = [CHAT["messages"][0]["content"][0], {"type": "text", "text": words}]  # type: ignore[index]
            body = {"messages": [{"role": "user", "content": parts}], "stream": True}
            connection.sendall(post("/v1/chat/completions", body))
        replies = [read(first).events, read(second).events]
    texts = ["".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) for chunks in replies]
    assert texts == ["a b c ", "d e f "]
    assert len({chunk["id"] for chunks in replies for chunk in chunks}) == 2
