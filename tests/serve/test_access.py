"""Who may ask: foreign host names and origins, keys."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.serve.over_http import BODY, CHAT, Policy, get, head, post, serving, talk


def answering() -> Policy:
    policy = Policy()
    policy.let_go.set()
    return policy


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8710", 200),
        ("127.0.0.1:8710", 200),
        ("192.168.1.7", 200),
        ("[::1]:8710", 200),
        ("robot.lan:8710", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8710", 403),
        ("user@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_not_allowed_is_refused(host: str, status: int) -> None:
    with serving(answering(), hosts=["Robot.lan"]) as port:
        assert get(port, Host=host).status == status


def test_any_host_can_be_allowed() -> None:
    with serving(answering(), hosts=["*"]) as port:
        assert get(port, Host="anything.example").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8710", 200),
        ("https://app.example", 200),
        ("http://app.example", 403),
        ("https://app.example.evil.example", 403),
        ("http://localhost:3000", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_origins_may_not_ask(origin: str, status: int) -> None:
    policy = answering()
    with serving(policy, origins=["https://app.example"]) as port:
        headers = {"Host": "localhost:8710", "Origin": origin, "Content_Type": "text/plain"}
        reply = talk(port, post("/v1/ask", BODY, **headers))
    assert reply.status == status
    assert len(policy.asked) == (status == 200)
    assert ("access-control-allow-origin" in reply.headers) == (origin == "https://app.example")


def test_a_plain_text_post_from_a_foreign_page_under_a_foreign_name_is_refused() -> None:
    policy = answering()
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Content_Type": "text/plain"}
    with serving(policy) as port:
        assert talk(port, post("/v1/chat/completions", CHAT, **headers)).status == 403
    assert not policy.asked


def test_browsers_ask_first_and_are_told() -> None:
    with serving(answering(), origins=["https://app.example"]) as port:
        wanted = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
        ask = head("OPTIONS", "/v1/ask", Origin="https://app.example", Connection="close", **wanted)
        assert talk(port, ask).headers["access-control-allow-origin"] == "https://app.example"
    with serving(answering()) as port:
        reply = talk(port, ask)
    assert reply.status == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_key_is_asked_for_before_the_body() -> None:
    policy = answering()
    with serving(policy, key="secret") as port:
        assert get(port).status == 200
        assert get(port, "/v1/models").status == 401
        unread = talk(port, head("POST", "/v1/chat/completions", Content_Length="1000", Connection="close"))
        assert unread.status == 401
        assert unread.json["error"]["type"] == "invalid_request_error"
        assert talk(port, post("/v1/ask", BODY, Authorization="Bearer secreté")).status == 401
        assert talk(port, post("/v1/ask", BODY, Authorization="Bearer secret")).status == 200
        assert get(port, "/v1/models", Authorization="Bearer secret").json["data"][0]["id"] == "scripted"
