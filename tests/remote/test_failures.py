"""What can go wrong with a server: one clear line each, and nothing is done twice."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gog_edge
from gog_edge.engines.remote.options import RemoteOptions, parse_address
from gog_edge.errors import BundleError, ContextOverflowError, EngineError, UsageError
from tests.remote.conftest import NANO, Shelf
from tests.remote.stand_in import Reply, StandIn
from tests.remote.test_turns import ANSWER, TEXT

Load = Callable[..., Any]


@pytest.fixture
def ask(open_agent: Load, photo: Path) -> Callable[..., Any]:
    return lambda **remote: open_agent(**remote).ask(photo, "What is it?")


def test_nobody_there() -> None:
    pytest.importorskip("httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match="can't be reached: is the server running"):
        gog_edge.load(NANO, engine=f"openai:http://127.0.0.1:{port}")


def test_a_name_that_is_not_served(server: StandIn) -> None:
    with pytest.raises(EngineError, match="has no model 'other'; it serves nano"):
        gog_edge.load(NANO, engine=f"openai:{server.url}#other")
    server.models.append({"id": "second"})
    with pytest.raises(EngineError, match="serves nano, second: name one"):
        gog_edge.load(NANO, engine=f"openai:{server.url}")
    gog_edge.load(NANO, engine=f"openai:{server.url}#second").close()


def test_a_key(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret-number-one"
    with pytest.raises(EngineError, match="wants a key: set GOG_EDGE_API_KEY"):
        gog_edge.load(NANO, engine=f"openai:{server.url}")
    monkeypatch.setenv("MY_KEY", "wrong-and-private")
    with pytest.raises(EngineError, match="refuses the key in MY_KEY") as caught:
        gog_edge.load(NANO, engine=f"openai:{server.url}", engine_options=RemoteOptions(key_env="MY_KEY"))
    assert "wrong-and-private" not in str(caught.value)
    monkeypatch.setenv("GOG_EDGE_API_KEY", server.key)
    gog_edge.load(NANO, engine=f"openai:{server.url}").close()


@pytest.mark.parametrize(
    ("status", "error", "kind", "words"),
    [
        (400, "image is odd", EngineError, "HTTP 400 .image is odd"),
        (400, "maximum context length is 4096 tokens", ContextOverflowError, "exceeds the server's context"),
        (404, "no model", EngineError, "no such model"),
        (413, "large", EngineError, "smaller pictures"),
        (307, "elsewhere", EngineError, "redirects .HTTP 307., which is not followed"),
        (500, "a bug", EngineError, "HTTP 500 .a bug"),
    ],
)
def test_refusals(server: StandIn, ask: Any, status: int, error: str, kind: type[Exception], words: str) -> None:
    server.replies.append(Reply(status=status, error=error, headers={"Location": "http://127.0.0.1:1/"}))
    with pytest.raises(kind, match=words) as caught:
        ask()
    assert len(server.requests) == 1 and "\n" not in str(caught.value)


def test_a_busy_server_is_asked_again_and_acts_once(server: StandIn, ask: Any, shelf: Shelf) -> None:
    server.replies.extend(
        [Reply(status=503, headers={"Retry-After": "0"}), Reply(status=429, headers={"Retry-After": "0"})]
    )
    server.say(TEXT, ANSWER)
    assert ask().text == "Lima"
    assert len(server.requests) == 4 and shelf.asked.count("capital") == 1


def test_and_not_for_ever(server: StandIn, ask: Any) -> None:
    server.replies.extend(Reply(status=503, error="full", headers={"Retry-After": "0"}) for _ in range(9))
    with pytest.raises(EngineError, match="HTTP 503"):
        ask(retries=1)
    assert len(server.requests) == 2


def test_a_broken_turn_is_not_asked_for_again(server: StandIn, ask: Any, shelf: Shelf) -> None:
    server.say(TEXT, breaks=5)
    with pytest.raises(EngineError, match="in the middle of a turn"):
        ask()
    assert len(server.requests) == 1 and "capital" not in shelf.asked


def test_a_silent_server(server: StandIn, ask: Any) -> None:
    server.say(ANSWER, pause=5)
    with pytest.raises(EngineError, match=r"broke in the middle|in time"):
        ask(read_timeout="300ms")


@pytest.mark.parametrize("deltas", [[{"content": 7}], [{"tool_calls": [1, None]}], [{"reasoning": {}}], []])
def test_odd_pieces_are_no_text(server: StandIn, ask: Any, deltas: list[Any]) -> None:
    server.replies.extend(Reply(deltas=deltas) for _ in range(9))
    assert ask().text == ""


def test_addresses() -> None:
    assert parse_address("http://box:8000") == ("http://box:8000/v1", "")
    assert parse_address("https://box/api/v3/chat/completions#a/b") == ("https://box/api/v3", "a/b")
    for wrong in ("", "box:8000", "ftp://box", "http://u:p@box/v1", "http://box/v1?key=1", "http://box:port/v1"):
        with pytest.raises(UsageError, match="engine openai"):
            parse_address(wrong)
    for options in ({"kind": "what"}, {"retries": -1}, {"jpeg": 96}, {"read_timeout": 0}):
        with pytest.raises(UsageError):
            RemoteOptions(**options)


def test_which_policy(server: StandIn, tmp_path: Path) -> None:
    engine = f"openai:{server.url}"
    with pytest.raises(UsageError, match="name its dialect"):
        gog_edge.load("qwen2_5_vl", engine=engine)
    with gog_edge.load("qwen2_5_vl", engine=engine, dialect="mini-o3") as agent:
        assert agent.model.manifest.preprocessing.factor == 28
        assert agent.dialect.stop == ("</grounding>",)
    with pytest.raises(BundleError):
        gog_edge.load("qwen9", engine=engine, dialect="mini-o3")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BundleError, match="llama"):
        gog_edge.load(tmp_path, engine=engine)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"')
    with pytest.raises(BundleError, match="can't be read"):
        gog_edge.load(tmp_path, engine=engine)


def test_the_address_has_to_be_there() -> None:
    with pytest.raises(UsageError, match="openai:URL"):
        gog_edge.load(NANO, engine="openai")
