"""MCP tools as providers: stdio and streamable HTTP (JSON and event streams), lost sessions, errors, deadlines."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.image.frame import Frame
from gog_edge.search.base import Deadline, ImageQuery
from gog_edge.search.config import load_providers
from gog_edge.search.web.address import AddressPolicy
from gog_edge.search.web.mcp import McpClient, McpProvider, ToolCall
from gog_edge.search.web.mcp_transport import HttpTransport, StdioTransport
from tests.search import mcp_server
from tests.search import server as web
from tests.search.server import WebServer

SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
ROWS = {"items": "rows", "title": "t", "source": "u", "score": "n"}
CALLS = {
    "text": ToolCall("search", {"q": "{query}", "n": "{k}"}, ROWS),
    "image": ToolCall("picture", {"image": "{image_base64}"}),
    "page": ToolCall("page", {"url": "{page_url}"}),
}


def soon(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds)


@pytest.fixture
def stdio() -> Iterator[McpClient]:
    client = McpClient(StdioTransport(SERVER))
    yield client
    client.close()


def test_tools_search_read_and_take_pictures(stdio: McpClient) -> None:
    provider = McpProvider("mcp", stdio, CALLS)
    assert provider.kinds == {"text", "image", "page"}
    assert [t["name"] for t in stdio.tools(soon())] == ["search"]
    hit = provider.search_text('chad "x"', k=4, deadline=soon())[0]
    assert (hit.title, hit.source, hit.score) == ('about chad "x"', "https://m.example", 4.0)
    frame = Frame.open(np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8).astype(np.uint8))
    assert "bytes" in provider.search_image(ImageQuery(frame), k=1, deadline=soon())[0].text
    assert provider.read_page("https://1.1.1.1/", deadline=soon()).text == "text of https://1.1.1.1/"
    plain = McpProvider("mcp", stdio, {"text": ToolCall("plain")}).search_text("x", k=5, deadline=soon())
    assert [(h.title, h.text) for h in plain] == [("first", "first\nline"), ("second", "second")]


@pytest.mark.parametrize(
    ("tool", "says"), [("fails", "quota exceeded"), ("nope", "Unknown tool"), ("plain", "no JSON")]
)
def test_tool_errors_are_search_errors(stdio: McpClient, tool: str, says: str) -> None:
    provider = McpProvider("mcp", stdio, {"text": ToolCall(tool, {}, ROWS)})
    with pytest.raises(SearchError, match=says):
        provider.search_text("x", k=1, deadline=soon())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://localhost:8080/x", "http://169.254.169.254/", "file:///etc/passwd", "x"]
)
def test_a_page_tool_is_not_sent_to_private_addresses(stdio: McpClient, url: str) -> None:
    """The server runs here: an address out of a result must not make it read this network's own hosts."""
    with pytest.raises(SearchError, match="refused"):
        McpProvider("mcp", stdio, CALLS).read_page(url, deadline=soon())
    allowed = McpProvider("mcp", stdio, CALLS, policy=AddressPolicy(frozenset({"localhost:8080"})))
    if "8080" in url:
        assert allowed.read_page(url, deadline=soon()).text == f"text of {url}"


def test_a_flood_is_left_behind_and_the_session_lives_on(stdio: McpClient) -> None:
    """A line without an end is read in pieces that are thrown away; the answer in it never comes."""
    stdio.tools(soon())
    with pytest.raises(SearchTimeoutError):
        stdio.call("flood", {}, soon(1.0))
    assert stdio.call("page", {"url": "u"}, soon(30))["content"][0]["text"] == "text of u"
    long = McpProvider("mcp", stdio, {"text": ToolCall("long")}).search_text("x", k=5, deadline=soon(30))
    assert [len(hit.text) for hit in long] == [8000] * 5


def test_a_slow_tool_ends_with_the_deadline_and_the_session_lives_on(stdio: McpClient) -> None:
    stdio.tools(soon())
    with pytest.raises(SearchTimeoutError):
        stdio.call("slow", {}, soon(0.2))
    assert stdio.call("page", {"url": "u"}, soon())["content"][0]["text"] == "text of u"


def test_a_server_that_died_is_started_again() -> None:
    client = McpClient(StdioTransport([*SERVER, "1"]))
    for _ in range(3):
        assert client.call("page", {"url": "u"}, soon())["content"]
    client.close()


def test_a_server_that_can_not_start_or_ends_at_once_is_an_error() -> None:
    with pytest.raises(SearchError, match="can't be started"):
        McpClient(StdioTransport(["/nowhere/mcp"])).tools(soon())
    with pytest.raises(SearchError, match="ended"):
        McpClient(StdioTransport([sys.executable, "-c", "pass"])).tools(soon())


def test_the_server_gets_only_the_environment_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OTHERS", "1")
    monkeypatch.setenv("MY_TOKEN", "t0ken")
    client = McpClient(StdioTransport(SERVER, {"TOKEN": "${MY_TOKEN}"}))
    text = client.call("env", {}, soon())["content"][0]["text"]
    client.close()
    assert text.endswith(" t0ken")
    assert "SECRET_OF_OTHERS" not in text


class HttpMcp:
    """The same server behind streamable HTTP."""

    def __init__(self, stream: bool) -> None:
        self.stream, self.session, self.forget = stream, 0, False
        self.answered = threading.Event()

    def __call__(self, handler: Any, call: web.Call) -> None:
        if call.method == "DELETE":
            return web.send(handler, b"", 200)
        message = call.json
        assert call.headers["accept"] == "application/json, text/event-stream"
        assert call.headers["authorization"] == "Bearer t0ken"
        if message["method"] == "initialize":
            self.session += 1
            reply = json.dumps({"jsonrpc": "2.0", "id": message["id"], **mcp_server.answer(message)}).encode()
            return web.send(handler, reply, mcp_session_id=f"s{self.session}")
        if self.forget or call.headers.get("mcp-session-id") != f"s{self.session}":
            self.forget = False
            return web.send(handler, b"", 404)
        assert call.headers["mcp-protocol-version"] == "2025-06-18"
        if "id" not in message:
            return web.send(handler, b"", 202)
        reply = json.dumps({"jsonrpc": "2.0", "id": message["id"], **mcp_server.answer(message)}).encode()
        if not self.stream:
            return web.send(handler, reply)
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(b': hello\r\n\r\nevent: message\ndata: {"jsonrpc":"2.0","method":"notifications/x"}\n\n')
        handler.wfile.write(b"id: 7\ndata: " + reply + b"\n\n")
        handler.wfile.flush()
        self.answered.wait(web.FOREVER)  # a stream that stays open must not hold up the answer
        handler.close_connection = True


@pytest.mark.parametrize("stream", [False, True])
def test_streamable_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setenv("MY_TOKEN", "t0ken")
    with WebServer() as site:
        site.routes["/mcp"] = server = HttpMcp(stream)
        path = tmp_path / "s.toml"
        path.write_text(
            f"""
            [[provider]]
            kind = "mcp"
            name = "tools"
            url = "{site.url}/mcp"
            headers = {{ Authorization = "Bearer ${{MY_TOKEN}}" }}
            [provider.text]
            tool = "search"
            arguments = {{ q = "{{query}}", n = "{{k}}" }}
            results = {{ items = "rows", title = "t" }}
            """,
            encoding="utf-8",
        )
        provider = load_providers(path)[0]
        assert provider.search_text("chad", k=2, deadline=soon())[0].title == "about chad"
        server.forget = True
        assert provider.search_text("niger", k=2, deadline=soon())[0].title == "about niger"
        assert server.session == 2
        server.answered.set()
        provider.close()
        assert site.calls[-1].method == "DELETE"


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (web.answer({}, 500), "HTTP 500"),
        (web.answer({}, 401), "HTTP 401"),
        (web.html("<html>"), "no JSON-RPC"),
        (web.answer({"jsonrpc": "2.0", "id": 1, "result": 3}), "without a result"),
        (web.answer({"jsonrpc": "2.0", "id": 1, "error": {"message": "no\nway"}}), "no way"),
        (web.silent(), "in time"),
    ],
)
def test_broken_http_servers_are_search_errors(route: web.Route, says: str) -> None:
    with WebServer() as site:
        site.routes["/mcp"] = route
        with pytest.raises(SearchError, match=says):
            McpClient(HttpTransport(f"{site.url}/mcp")).tools(soon(0.5 if says == "in time" else 20.0))


def test_no_process_is_left_behind() -> None:
    transport = StdioTransport(SERVER)
    client = McpClient(transport)
    client.tools(soon())
    assert transport._server is not None
    pid = transport._server._process.pid
    client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("tool", ["echo", "tells", "refuses", "env", "plain-echo"])
@pytest.mark.parametrize("token", ["t0ken-of-mine", 'quo"ted\\tok/en+=&'])
def test_a_key_that_the_server_echoes_is_shown_nowhere(
    tool: str, token: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The variable's own name says nothing of a secret; its value is what is redacted."""
    monkeypatch.setenv("LIBRARY_CARD", token)
    results = "" if tool == "plain-echo" else ', results = { items = "rows", title = "t", source = "u" }'
    called = tool.removeprefix("plain-")
    file = tmp_path / "search.toml"
    file.write_text(
        f"[[provider]]\nkind = 'mcp'\nname = 'm'\nretries = 0\ncommand = {json.dumps(SERVER)}\n"
        f'env = {{ TOKEN = "${{LIBRARY_CARD}}" }}\n'
        f'text = {{ tool = "{called}"{results} }}\npage = {{ tool = "{called}" }}\n'
    )
    (provider,) = load_providers(file)
    shown: list[str] = []
    with caplog.at_level("DEBUG"):
        for ask in (
            lambda: provider.search_text("x", k=3, deadline=soon()),
            lambda: provider.read_page("https://1.1.1.1/", deadline=soon()),
        ):
            try:
                shown.append(repr(ask()))
            except SearchError as e:
                shown.append(f"{e} {e.__cause__}")
    provider.close()
    text = "".join([*shown, caplog.text])
    assert "[key]" in "".join(shown)
    for form in (token, json.dumps(token)[1:-1], repr(token)[1:-1]):
        assert form not in text
