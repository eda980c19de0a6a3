"""Follow-up turns with a real (tiny) policy: what was read for the first question is not read again."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette")
from starlette.testclient import TestClient

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.serve.app import create_app


@pytest.fixture(scope="module")
def client(tiny_bundle: Path) -> Iterator[TestClient]:
    options = RunOptions(turn_tokens=12, total_tokens=24, max_turns=1, grammar="off")
    with gog_edge.load(tiny_bundle, options=options) as agent:
        yield TestClient(create_app(agent, name="tiny"), base_url="http://localhost")


def picture(path: Path, mark: bytes = b"") -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes() + mark).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def usage(client: TestClient, *messages: dict[str, Any]) -> tuple[int, int]:
    """(tokens of the prompt, those of them that were not read again)."""
    reply = client.post("/v1/chat/completions", json={"messages": messages})
    assert reply.status_code == 200, reply.text
    used = reply.json()["usage"]
    return used["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"]


def test_a_second_question_reads_its_own_words_only(client: TestClient, photo: Path) -> None:
    first = {"role": "user", "content": [picture(photo), {"type": "text", "text": "What is in this picture?"}]}
    reply = {"role": "assistant", "content": "A boat."}
    follow_up = {"role": "user", "content": "Which colour?"}
    whole, _ = usage(client, first)
    _, kept = usage(client, first, reply, follow_up)
    assert kept >= whole // 2
    longer, kept = usage(client, first, reply, follow_up)
    assert longer - kept < whole // 4  # asked once more: the prompt is there but for its end
    turns = [first, reply, follow_up, {"role": "assistant", "content": "Red."}, {"role": "user", "content": "And now?"}]
    third, kept = usage(client, *turns)
    assert third > longer and third - kept < whole // 2


def test_what_came_before_and_instructions_are_read(client: TestClient, photo: Path) -> None:
    asked = {"role": "user", "content": [picture(photo), {"type": "text", "text": "Why?"}]}
    before = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello to you."}]
    system = {"role": "system", "content": "Answer in one word."}
    plain, _ = usage(client, asked)
    assert usage(client, system, asked)[0] > plain
    assert usage(client, *before, asked)[0] > plain
    second = {"role": "user", "content": [picture(photo), picture(photo), {"type": "text", "text": "Why?"}]}
    assert usage(client, second)[0] > plain + 5  # tokens of another picture


@pytest.mark.parametrize("kept", [1, 2])
def test_the_session_that_has_seen_the_picture_is_taken(
    tiny_bundle: Path, photo: Path, tmp_path: Path, kept: int
) -> None:
    pictures = [photo]
    for colour in ("red", "green"):
        pictures.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (64, 48), colour).save(pictures[-1])
    options = RunOptions(turn_tokens=4, total_tokens=4, max_turns=1, grammar="off", keep_sessions=kept)

    def read_again(*asked: Path) -> int:
        return agent.ask(asked, "Why?").usage.image_tokens

    with gog_edge.load(tiny_bundle, options=options) as agent:
        first, second, third = pictures
        assert read_again(first) and read_again(second)
        assert bool(read_again(first)) == (kept == 1)
        assert bool(read_again(second)) == (kept == 1)
        assert read_again(third)  # it takes the session that waited longest: of two, that of the first picture
        assert bool(read_again(second)) == (kept == 1)
        assert read_again(first)
    assert agent._idle.take([]) is None


def test_earlier_questions_can_not_have_more_pictures_than_there_are(tiny_bundle: Path, photo: Path) -> None:
    with gog_edge.load(tiny_bundle) as agent, pytest.raises(gog_edge.UsageError, match="have 2 images, of 1"):
        agent.ask(photo, "Why?", earlier=[gog_edge.Exchange("What?", "A boat.", 2)])
