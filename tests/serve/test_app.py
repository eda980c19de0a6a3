"""The HTTP service with a real (tiny) policy behind it: answers, events, limits, and clear errors."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.serve.app import create_app


@pytest.fixture(scope="module")
def client(tiny_bundle: Path) -> Iterator[TestClient]:
    options = RunOptions(turn_tokens=12, total_tokens=24, max_turns=1, grammar="off")
    with gog_edge.load(tiny_bundle, options=options) as agent:
        app = create_app(agent, name="tiny", queue=0)
        yield TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def body(photo: Path) -> dict[str, Any]:
    return {"image": base64.b64encode(photo.read_bytes()).decode(), "question": "What is it?"}


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json()["bundle"] == "tiny"


def test_ask_answers_with_steps(client: TestClient, body: dict[str, Any]) -> None:
    reply = client.post("/v1/ask", json=body)
    assert reply.status_code == 200
    data = reply.json()
    assert data["type"] == "answer"
    assert data["stop"] in ("forced", "exhausted", "answered")
    assert data["usage"]["image_tokens"] > 0


def test_streaming_ends_with_the_answer(client: TestClient, body: dict[str, Any]) -> None:
    reply = client.post("/v1/ask", json={**body, "stream": True})
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    parsed = [json.loads(e) for e in events[:-1]]
    assert parsed[-1]["type"] == "answer"
    assert {"token", "answer"} <= {e["type"] for e in parsed}


def test_chat_completion(client: TestClient, body: dict[str, Any]) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{body['image']}"}},
        {"type": "text", "text": body["question"]},
    ]
    reply = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert reply.status_code == 200
    data = reply.json()
    assert data["choices"][0]["message"]["role"] == "assistant"
    assert data["usage"]["total_tokens"] == data["usage"]["prompt_tokens"] + data["usage"]["completion_tokens"]


def test_sampling_and_length_of_one_question(client: TestClient, body: dict[str, Any]) -> None:
    content = [{"type": "image_url", "image_url": {"url": body["image"]}}, {"type": "text", "text": "What is it?"}]

    def written(**options: Any) -> tuple[str, int]:
        asked = {"messages": [{"role": "user", "content": content}], **options}
        reply = client.post("/v1/chat/completions", json=asked).json()
        texts = "".join(step["turn"]["raw"] for step in reply["gog_edge"]["steps"])
        return texts, reply["usage"]["completion_tokens"]

    plain = written()
    assert written(temperature=1.9, seed=1) == written(temperature=1.9, seed=1)
    assert len({written(temperature=1.9, seed=seed)[0] for seed in range(3)} | {plain[0]}) > 2
    assert written() == plain  # what one question said is not the next one's
    assert written(max_tokens=5)[1] < plain[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "image is missing"),
        ({"image": "https://example.com/x.jpg"}, "addresses are not fetched"),
        ({"image": "@@@"}, "not base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, "image"),
        ({"question": " "}, "question is missing"),
        ({"deadline": -1}, "deadline must be a positive number"),
        ({"max_turns": 1.5}, "max_turns must be a whole number"),
        ({"surprise": 1}, "there is no field 'surprise' here"),
    ],
)
def test_bad_input_is_one_line_and_400(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    reply = client.post("/v1/ask", json={**body, **change})
    assert reply.status_code == 400
    assert message in reply.json()["error"]
    assert "\n" not in reply.json()["error"]


def test_what_is_no_json_is_refused(client: TestClient) -> None:
    assert client.post("/v1/ask", content=b"{").status_code == 400


def test_a_full_queue_gets_429(tiny_bundle: Path, body: dict[str, Any]) -> None:
    started, release = threading.Event(), threading.Event()

    class Slow:
        def events(self, request: gog_edge.AskRequest) -> object:
            started.set()
            release.wait(10)
            raise gog_edge.GogEdgeError("stopped")

    app = create_app(Slow(), name="slow", queue=0)  # type: ignore[arg-type]
    client = TestClient(app, base_url="http://localhost")
    with client:
        first = threading.Thread(target=client.post, args=("/v1/ask",), kwargs={"json": body})
        first.start()
        assert started.wait(10)
        reply = client.post("/v1/ask", json=body)
        release.set()
        first.join()
    assert reply.status_code == 429
    assert "Retry-After" in reply.headers
