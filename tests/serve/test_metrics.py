"""What is counted and logged, and what the description says: held against the server, Prometheus's reader and a JSON
schema validator."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.routing import Route

from gog_edge.agent.request import AskRequest
from gog_edge.errors import EngineError, ImageError
from gog_edge.serve.app import create_app
from gog_edge.serve.limits import ServeLimits
from gog_edge.serve.metrics import Metrics
from gog_edge.serve.openapi import openapi_json
from gog_edge.types import Answer, AnswerEvent, Event, StopReason, Usage
from tests.serve.over_http import BODY, CHAT, SECONDS, Policy, connect, get, post, serving, talk, until

KEY = "the key itself"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values…) -> value, as Prometheus reads them."""
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def counted(port: int) -> dict[tuple[str, ...], float]:
    return samples(get(port, "/metrics", Authorization=f"Bearer {KEY}").body.decode())


def policy_of(*instead: Answer | Exception) -> Policy:
    left = list(instead)

    def events(_: AskRequest) -> Iterator[Event]:
        if isinstance(one := left.pop(0), Exception):
            raise one
        yield AnswerEvent(one)

    return Policy(instead=events)


def test_questions_are_counted_by_how_they_ended() -> None:
    usage = Usage(prompt_tokens=30, reused_tokens=70, image_tokens=20, generated_tokens=9)
    endings = [
        Answer("a boat", StopReason.ANSWERED, usage=usage),
        Answer("a ship", StopReason.FORCED, usage=usage),
        ImageError("no picture"),
        EngineError("broken"),
    ]
    with serving(policy_of(*endings), key=KEY) as port:
        assert counted(port)["gog_edge_questions_running",] == 0
        for _ in endings:
            talk(port, post("/v1/ask", BODY, Authorization=f"Bearer {KEY}"))
        until(lambda: counted(port).get(("gog_edge_questions_total", "failed")) == 1)
        found = counted(port)
    assert {k[1]: v for k, v in found.items() if k[0] == "gog_edge_questions_total"} == {
        "answered": 1, "forced": 1, "refused": 1, "failed": 1,
    }  # fmt: skip
    assert found["gog_edge_question_seconds_count",] == found["gog_edge_queue_seconds_count",] == 4
    assert found["gog_edge_question_seconds_bucket", "+Inf"] == 4
    tokens = {k[1]: v for k, v in found.items() if k[0] == "gog_edge_tokens_total"}
    assert tokens == {"prompt": 60, "reused": 140, "image": 40, "generated": 18}
    assert found["process_resident_memory_bytes",] > 1e7
    assert found["gog_edge_http_replies_total", "/v1/ask", "200"] == 2
    assert found["gog_edge_http_replies_total", "/v1/ask", "400"] == 1
    assert found["gog_edge_http_replies_total", "/v1/ask", "500"] == 1


def test_who_waits_and_who_leaves_is_counted() -> None:
    policy = Policy()
    with serving(policy, key=KEY) as port, connect(port) as first:
        first.sendall(post("/v1/ask", BODY, Authorization=f"Bearer {KEY}"))
        until(lambda: bool(policy.asked))
        with connect(port) as second:
            second.sendall(post("/v1/ask", BODY, Authorization=f"Bearer {KEY}"))
            until(lambda: counted(port)["gog_edge_questions_waiting",] == 1)
            assert counted(port)["gog_edge_questions_running",] == 1
        until(lambda: counted(port)["gog_edge_questions_waiting",] == 0)
        first.close()
        until(lambda: counted(port).get(("gog_edge_questions_total", "cancelled")) == 2)
        found = counted(port)
    assert found["gog_edge_queue_seconds_count",] == 2
    assert found["gog_edge_question_seconds_count",] == 1  # the other never ran


def test_names_that_clients_make_up_become_no_counters_and_labels_are_escaped() -> None:
    with serving(Policy(), key=KEY) as port:
        for number in range(3):
            get(port, f"/made-up-{number}", Authorization=f"Bearer {KEY}")
        found = counted(port)
    assert found["gog_edge_http_replies_total", "other", "404"] == 3
    assert not [key for key in found if any("made-up" in label for label in key)]
    assert ("gog_edge_info", "1", 'a "b"\\\n') in samples(Metrics("1", 'a "b"\\\n').text(0, 0))


def test_numbers_need_the_key_and_pages_do_not() -> None:
    with serving(Policy(), key=KEY) as port:
        assert get(port, "/metrics").status == 401
        for path in ("/", "/page.css", "/page.js", "/docs", "/openapi.json"):
            reply = get(port, path)
            assert reply.status == 200
            if path in ("/", "/docs"):
                assert "default-src 'none'" in reply.headers["content-security-policy"]
                assert b"http://" not in reply.body and b"https://" not in reply.body
        assert get(port, "/", Host="evil.example").status == 403


def test_the_access_log_has_a_line_for_each_request_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_of(Answer("a secret answer", StopReason.ANSWERED))
    asked = {**BODY, "question": "What does nobody know?", "stream": True}
    with caplog.at_level(logging.INFO, "gog_edge.access"), serving(policy, key=KEY) as port:
        sent = post("/v1/ask?token=hidden", asked, Authorization=f"Bearer {KEY}")
        talk(port, sent)
        get(port, "/x%1b[1m")
        until(lambda: len(caplog.messages) == 2)
    first, second = (json.loads(line) for line in caplog.messages)
    assert (first["method"], first["path"], first["status"], first["outcome"]) == ("POST", "/v1/ask", 200, "answered")
    assert first["received"] == len(sent.partition(b"\r\n\r\n")[2]) and first["sent"] > 0
    assert first["client"] == "127.0.0.1" and first["seconds"] < SECONDS
    assert time.strptime(first["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert second["status"] in (400, 401) and "outcome" not in second
    text = "".join(caplog.messages)
    assert not [word for word in (KEY, "hidden", "nobody", "secret answer", BODY["image"], "\x1b") if word in text]


def test_the_log_is_silent_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Policy()) as port:
        get(port)
    assert not [record for record in caplog.records if record.name == "gog_edge.access"]


# -- the description -----------------------------------------------------------------------------------------


def test_every_address_is_described_and_its_page_shows_it() -> None:
    app = create_app(Policy(), name="x")  # type: ignore[arg-type]
    paths = {r.path.replace(":path", ""): r.methods - {"HEAD"} for r in app.routes if isinstance(r, Route)}
    described = openapi_json(ServeLimits())["paths"]
    files = {"/page.css", "/page.js"}
    assert set(described) == set(paths) - files
    for path, item in described.items():
        assert {method.upper() for method in item if method in ("get", "post")} == paths[path]
    with serving(Policy()) as port:
        page = get(port, "/docs").body.decode()
        assert get(port, "/openapi.json").json == openapi_json(ServeLimits())
    assert all(f" {path}</h2>" in page for path in described)


PARTS = [
    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
    {"type": "input_text", "text": "What is it?"},
]


@pytest.mark.parametrize(
    ("schema", "body", "good"),
    [
        ("Ask", BODY, True),
        ("Ask", {**BODY, "deadline": "2s", "max_turns": 3, "stream": None}, True),
        ("Ask", {**BODY, "surprise": 1}, False),
        ("Ask", {"question": "x"}, False),
        ("Ask", {**BODY, "deadline": 1e9}, False),
        ("Ask", {**BODY, "max_turns": 1.5}, False),
        ("Chat", CHAT, True),
        ("Chat", {**CHAT, "n": 1, "temperature": 0, "stop": ["x"], "max_tokens": 5, "user": "me"}, True),
        ("Chat", {**CHAT, "n": 2}, False),
        ("Chat", {**CHAT, "temperature": 3}, False),
        ("Chat", {**CHAT, "response_format": {"type": "json_object"}}, True),
        ("Chat", {**CHAT, "response_format": {"type": "xml"}}, False),
        ("Chat", {**CHAT, "surprise": 1}, False),
        ("Chat", {**CHAT, "tools": [], "tool_choice": "auto", "logprobs": False}, True),
        ("Chat", {**CHAT, "tools": [{}]}, False),
        ("Responses", {"input": [{"role": "user", "content": PARTS}], "store": True}, True),
        ("Responses", {"input": [{"role": "user", "content": PARTS}], "previous_response_id": "resp_1"}, False),
        ("Responses", {"input": [{"role": "user", "content": PARTS}], "max_output_tokens": 0}, False),
        ("Chat", {"messages": []}, False),
    ],
)
def test_bodies_are_what_the_description_says(schema: str, body: dict[str, Any], good: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    components = openapi_json(ServeLimits())["components"]["schemas"]
    validator = jsonschema.Draft202012Validator(components[schema])
    assert validator.is_valid(body) == good
    policy = Policy()
    policy.let_go.set()
    with serving(policy) as port:
        path = {"Ask": "/v1/ask", "Chat": "/v1/chat/completions", "Responses": "/v1/responses"}[schema]
        reply = talk(port, post(path, body))
    assert (reply.status == 200) == good
    answer = components[{"Ask": "Event", "Chat": "Completion", "Responses": "Response"}[schema] if good else "Error"]
    jsonschema.Draft202012Validator(answer).validate(reply.json)
