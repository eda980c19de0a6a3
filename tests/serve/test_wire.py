"""What a body may hold, and what a reply may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.agent.request import AskRequest
from gog_edge.errors import EngineError
from gog_edge.types import (
    Action,
    ActionKind,
    Answer,
    AnswerEvent,
    Event,
    Hit,
    Observation,
    ObservationEvent,
    StopReason,
)
from tests.serve.over_http import BODY, CHAT, Policy, get, post, serving, talk

CONTENT: list[Any] = CHAT["messages"][0]["content"]  # type: ignore[assignment]


def field(name: str, raw: str, body: Any = BODY) -> bytes:
    """`body` with one more field, as it is spelt."""
    return (json.dumps(body)[:-1] + f', "{name}": {raw}}}').encode()


def message(content: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


BAD_JSON = [
    b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"[]", b"1", b'"x"', b"1" * 5000,
    b"NaN", b'{"a": Infinity}', b'{"a": 1e400}', b'{"a": -1e400}',
]  # fmt: skip
BAD_ASK = [
    field(name, raw)
    for name in ("deadline", "max_turns")
    for raw in ("1e400", "9" * 400, "-" + "9" * 400, "9" * 5000, "0", "-1", "1e300", '"two"', "true", "[]", "{}", "NaN")
] + [
    field("max_turns", "1.5"), field("stream", "1"), field("stream", '"yes"'), field("image", "7"),
    field("image", "[]"), field("question", "[1]"), field("question", '"\\ud800"'), field("surprise", "1"),
    field("x" * 100_000, "1"),
]  # fmt: skip
BAD_CHAT = [
    field("n", "2", CHAT), field("n", "true", CHAT), field("n", '"1"', CHAT), field("stream", "2", CHAT),
    field("n", "9" * 400, CHAT), field("presence_penalty", "1e400", CHAT), field("user", "NaN", CHAT),
    *(field("messages", raw, CHAT) for raw in ("[]", "{}", '"abc"', "7", "[7]", '[{"role": []}]', "null")),
    *(message(content) for content in (
        "text", 7, {}, [], [7], [{"type": []}], [{"type": "audio"}], CONTENT[:1], CONTENT[1:],
        [*CONTENT, *CONTENT[:1] * 16],
        [CONTENT[1], {"type": "image_url", "image_url": 7}],
        [CONTENT[1], {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
        [CONTENT[1], {"type": "image_url", "image_url": {"url": ["x"]}}],
        [CONTENT[0], {"type": "text", "text": "\ud800"}],
    )),
]  # fmt: skip


def test_every_bad_body_is_400_in_one_line() -> None:
    policy = Policy()
    policy.let_go.set()
    with serving(policy) as port:
        for body in [*BAD_JSON, *BAD_ASK]:
            reply = talk(port, post("/v1/ask", body))
            assert (reply.status, body[:200]) == (400, body[:200])
            assert "\n" not in reply.json["error"]
            assert 0 < len(reply.json["error"]) <= 300
        for path, body in [("chat/completions", b) for b in (*BAD_JSON, *BAD_CHAT)] + [
            ("responses", b) for b in BAD_JSON
        ]:
            reply = talk(port, post(f"/v1/{path}", body))
            assert (reply.status, body[:200]) == (400, body[:200])
            error = reply.json["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert 0 < len(error["message"]) <= 300
    assert not policy.asked


def test_good_bodies_are_taken() -> None:
    policy = Policy()
    policy.let_go.set()
    wrapped = {**BODY, "image": "data:image/png;base64,QUJD\r\nREVG\n", "deadline": 1.5, "max_turns": 3}
    with serving(policy) as port:
        assert talk(port, post("/v1/ask", wrapped)).status == 200
        assert talk(port, post("/v1/chat/completions", {**CHAT, "n": 1, "stream": False})).status == 200
    assert [p.image for p in policy.asked] == [b"ABCDEF", [b"\0\0\0"]]
    assert (policy.asked[0].deadline, policy.asked[0].max_turns) == (1.5, 3)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/responses", 405), ("/v1/responses/resp_1", 404), ("/v1/chat/completions", 405), ("/x", 404)],
)
def test_unknown_addresses_are_answered_in_json(path: str, status: int) -> None:
    with serving(Policy()) as port:
        reply = get(port, path)
    assert reply.status == status
    assert reply.json["error"]


def fails(error: Exception) -> Policy:
    def instead(_: AskRequest) -> Iterator[Event]:
        raise error
        yield

    return Policy(instead=instead)


@pytest.mark.parametrize("error", [EngineError("can't run /srv/bundles/x.onnx"), OSError(5, "broken", "/srv/y")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_here_is_said_in_the_log_alone(
    error: Exception, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(fails(error)) as port:
        ask = talk(port, post("/v1/ask", {**BODY, "stream": stream}))
        chat = talk(port, post("/v1/chat/completions", {**CHAT, "stream": stream}))
    assert ask.status == chat.status == (200 if stream else 500)
    assert b"the question failed" in ask.body
    assert b"/srv" not in ask.body + chat.body
    assert "/srv" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_one_line_in_the_log(
    stream: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = Answer(object(), StopReason.ANSWERED)  # type: ignore[arg-type]  # can't be written as JSON
    with serving(Policy(instead=lambda _: iter([AnswerEvent(odd)]))) as port:
        reply = talk(port, post("/v1/ask", {**BODY, "stream": stream}))
    assert (b"the question failed" in reply.body) != stream
    assert b"[DONE]" not in reply.body
    assert [r.getMessage() for r in caplog.records] == [
        "a question failed: TypeError: Object of type object is not JSON serializable"
    ]
    assert "Traceback" not in capfd.readouterr().err


def test_pictures_of_hits_are_named_without_their_folder() -> None:
    hit = Hit("Boat", "It floats.", source="/home/me/notes.txt", image="/home/me/index/boat.png")
    web = Hit("Ship", "", source="https://example.com/a", image="https://example.com/b.png")
    seen = Observation(Action(ActionKind.GLANCE), (hit, web))
    events = [ObservationEvent(0, seen), AnswerEvent(Answer("a boat", StopReason.ANSWERED, (), (hit, web)))]
    with serving(Policy(instead=lambda _: iter(events))) as port:
        replies = [talk(port, post("/v1/ask", {**BODY, "stream": stream})) for stream in (False, True)]
        replies.append(talk(port, post("/v1/chat/completions", CHAT)))
    for reply in replies:
        assert b"/home" not in reply.body
        assert b"boat.png" in reply.body
        assert b"https://example.com/b.png" in reply.body
