"""OpenAI's chat completions: which parameters do what they say, and which are refused instead of ignored."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.sampling_options import Sampling
from tests.serve.over_http import CHAT, Policy, Reply, post, serving, talk

CONTENT: list[Any] = CHAT["messages"][0]["content"]  # type: ignore[assignment]


def answering() -> Policy:
    policy = Policy()
    policy.let_go.set()
    return policy


def chat(port: int, body: dict[str, Any]) -> Reply:
    return talk(port, post("/v1/chat/completions", body))


def test_what_is_said_of_sampling_and_length_reaches_the_policy() -> None:
    policy = answering()
    with serving(policy) as port:
        said = {"temperature": 0, "top_p": 0.5, "seed": 7, "max_tokens": 9, "max_completion_tokens": 5}
        for body in (CHAT, {**CHAT, **said}, {**CHAT, "max_tokens": 9, "seed": 2**53 - 1}):
            assert chat(port, body).status == 200
    assert [(r.sampling, r.max_tokens) for r in policy.asked] == [
        (None, None),
        (Sampling(temperature=0.0, top_p=0.5, seed=7), 5),
        (Sampling(seed=2**53 - 1), 9),
    ]


@pytest.mark.parametrize(
    ("stop", "content"),
    [("boat", "a "), (["t", "oa", "z"], "a b"), ("ship", "a boat"), (None, "a boat"), ([], "a boat")],
)
def test_the_answer_ends_before_a_stop_string(stop: Any, content: str) -> None:
    with serving(answering()) as port:
        reply = chat(port, {**CHAT, "stop": stop}).json
    assert reply["choices"][0]["message"]["content"] == content
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_a_stream_is_made_of_chunks() -> None:
    options = {"stream": True, "stop": "oat", "stream_options": {"include_usage": True}}
    with serving(answering()) as port:
        chunks = chat(port, {**CHAT, **options}).events
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    choices = [c["choices"][0] for c in chunks[:-1]]
    assert [c["delta"] for c in choices] == [{"role": "assistant", "content": ""}, {}, {"content": "a b"}, {}]
    assert [c["finish_reason"] for c in choices] == [None, None, None, "stop"]
    assert chunks[1]["gog_edge"]["type"] == "token"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 0
