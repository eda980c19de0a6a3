"""Every field of a request is honoured, refused or ignored as its table says, and docs/server.md shows that table."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gog_edge.sampling_options import Sampling
from gog_edge.serve.fields import ASK, CHAT, RESPONSES, Field
from tests.serve.over_http import BODY, Policy, Reply, post, serving, talk
from tests.serve.over_http import CHAT as CHAT_BODY
from tests.serve.test_metrics import PARTS
from tests.tools import ROOT

RESPONSE = {"input": [{"role": "user", "content": PARTS}]}
PATHS = {
    "/v1/ask": (ASK, BODY),
    "/v1/chat/completions": (CHAT, CHAT_BODY),
    "/v1/responses": (RESPONSES, RESPONSE),
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
# field -> (a value, what the policy is asked with then, values that make no sense)
SAID: dict[str, tuple[Any, Any, list[Any]]] = {
    "temperature": (0.5, {"sampling": Sampling(temperature=0.5)}, [-1, 3, "1", True, [], 10**400]),
    "top_p": (0.5, {"sampling": Sampling(top_p=0.5)}, [0, 1.1, "1"]),
    "top_k": (7, {"sampling": Sampling(top_k=7)}, [-1, 1.5, "7"]),
    "min_p": (0.1, {"sampling": Sampling(min_p=0.1)}, [-1, 1, "1"]),
    "repetition_penalty": (1.1, {"sampling": Sampling(repetition_penalty=1.1)}, [0, 100, "1"]),
    "seed": (3, {"sampling": Sampling(seed=3)}, [-1, 1.5, 2**60, "1", 10**400]),
    "max_tokens": (9, {"max_tokens": 9}, [0, -1, 1.5, "1", 10**400]),
    "max_completion_tokens": (9, {"max_tokens": 9}, [0, "9"]),
    "max_output_tokens": (9, {"max_tokens": 9}, [0, "9"]),
    "deadline": ("2s", {"deadline": 2.0}, [0, -1, "soon", [], True]),
    "max_turns": (2, {"max_turns": 2}, [0, 1.5, "2"]),
    "stream": (False, {}, [1, "yes", []]),
    "stream_options": ({"include_usage": False}, {}, [{"include_usage": 1}, "usage", []]),
    "stop": (["x"], {}, ["", [""], [1], 1, {}, ["a"] * 17]),
    "instructions": ("Be kind.", {"system": "Be kind."}, [7, ["x"]]),
    "response_format": (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        {"schema": SCHEMA},
        ["text", [], {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 1}}],
    ),
    "text": (
        {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        {"schema": SCHEMA},
        ["text", {"format": "text"}, {"format": {"type": "json_schema"}}, {"verbosity": "high"}],
    ),
    "question": ("Why?", {"question": "Why?"}, ["", " ", 7, None]),
    "image": ("QUJD", {"image": b"ABC"}, ["", 7, "@", "https://a.example/b.png", None]),
    "messages": (CHAT_BODY["messages"], {"question": "What is it?"}, [[], {}, "x", None, [7]]),
    "input": (RESPONSE["input"], {"question": "What is it?"}, [[], {}, "x", None, [7], [{"type": "reasoning"}]]),
}
ANYTHING: list[Any] = ["x", 7, True, [{"a": 1}], {"a": [1]}]


def asked(port: int, path: str, **fields: Any) -> Reply:
    return talk(port, post(path, {**PATHS[path][1], **fields}))


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = Policy()
    policy.let_go.set()
    return policy


@pytest.fixture(scope="module")
def port(policy: Policy) -> Any:
    with serving(policy) as port:
        yield port


def told(reply: Reply, path: str, name: str) -> None:
    """A refusal that names the field."""
    assert reply.status == 400, reply.body
    error = reply.json["error"]
    message = error if path == "/v1/ask" else error["message"]
    assert (name in message or name in ("messages", "input")) and "\n" not in message
    if path != "/v1/ask":
        assert error["type"] == "invalid_request_error" and error["param"].partition(".")[0] == name and error["code"]


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, (table, _) in PATHS.items() for name in table])
def test_a_field_does_what_its_table_says(policy: Policy, port: int, path: str, name: str) -> None:
    field: Field = PATHS[path][0][name]
    policy.asked.clear()
    if field.how == "ignored":
        for value in [*ANYTHING, None]:
            assert asked(port, path, **{name: value}).status == 200
        plain = policy.asked[-1]
        assert {(r.question, r.sampling, r.max_tokens, r.system, r.deadline) for r in policy.asked} == {
            (plain.question, None, None, "", None)
        }
    elif field.how == "refused":
        for value in (None, *field.harmless):
            assert asked(port, path, **{name: value}).status == 200
        before = len(policy.asked)
        for value in ANYTHING:
            told(asked(port, path, **{name: value}), path, name)
        assert len(policy.asked) == before
    else:
        value, wanted, wrong = SAID[name]
        assert asked(port, path, **{name: value}).status == 200
        request = policy.asked.pop()
        assert {key: getattr(request, key) for key in wanted} == wanted
        for value in wrong:
            told(asked(port, path, **{name: value}), path, name)
        assert not policy.asked


@pytest.mark.parametrize("path", PATHS)
def test_what_nobody_knows_is_refused(port: int, path: str) -> None:
    reply = asked(port, path, surprise=1)
    told(reply, path, "surprise")
    assert path == "/v1/ask" or reply.json["error"]["code"] == "unknown_parameter"
    assert asked(port, path, **{"x" * 1_000_000: 1}).status == 400


def test_tools_may_be_offered_to_nobody(policy: Policy, port: int) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for path in ("/v1/chat/completions", "/v1/responses"):
        assert asked(port, path, tools=[tool], tool_choice="none").status == 200
        for choice in (None, "auto", "required", {"type": "function", "function": {"name": "f"}}):
            reply = asked(port, path, tools=[tool], tool_choice=choice)
            assert reply.status == 400 and "--search" in reply.json["error"]["message"]


def test_the_newer_name_of_the_token_limit_comes_first(policy: Policy, port: int) -> None:
    asked(port, "/v1/chat/completions", max_tokens=9, max_completion_tokens=5)
    assert policy.asked[-1].max_tokens == 5


def test_every_parameter_of_the_openai_client_is_in_a_table() -> None:
    pytest.importorskip("openai")
    from openai.resources.chat.completions import Completions
    from openai.resources.responses import Responses

    for method, table in ((Completions.create, CHAT), (Responses.create, RESPONSES)):
        own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
        # what a later client brings is refused as unknown, until somebody decides
        known = {name for name in inspect.signature(method).parameters if name not in own}
        assert not {name for name in known if name not in table} - {"image", "access_programs"}


def rows(table: dict[str, Field]) -> list[str]:
    lines = ["| field | | |", "|---|---|---|"]
    for name, field in table.items():
        harmless = " or ".join(f"`{_json(value)}`" for value in field.harmless)
        how = f"refused, unless it is {harmless}" if harmless else field.how
        lines.append(f"| `{name}` | {how} | {field.why} |")
    return lines


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


@pytest.mark.parametrize("path", PATHS)
def test_the_page_shows_the_tables(path: str) -> None:
    page = (ROOT / "docs" / "server.md").read_text("utf-8")
    table = "\n".join(rows(dict(PATHS[path][0])))
    section = page.partition(f"### `POST {path}`")[2].partition("\n### ")[0]
    assert table in section, f"docs/server.md, POST {path}, must have\n{table}"
