"""`gog-edge mcp` as a process, with the SDK's own client in front: over stdio and over streamable HTTP."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

import jsonschema
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from PIL import Image

from gog_edge.cli.main import run
from tests.cli.asking import ANSWER, GAZE, TEXT
from tests.search import server as web
from tests.search.server import WebServer

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["-m", "tests.integrations.command"]
TOOLS = ["ask", "look", "search_text", "search_image"]
QUESTION = "When was it finished?"

Call = Callable[[Any], Awaitable[None]]


@pytest.fixture(scope="module")
def index(tiny_bundle: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two entries, with vectors of the bundle's tower."""
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "tower.jpg").write_bytes(photo.read_bytes())
    Image.new("RGB", (64, 64), "navy").save(folder / "sea.png")
    rows = [
        {"id": "t", "title": "Iron tower", "text": "Finished in 1889.", "image": "tower.jpg"},
        {"id": "s", "title": "The sea", "text": "It is deep.", "image": "sea.png"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(["index", "build", str(folder / "i"), str(folder / "rows.jsonl"), "--bundle", str(tiny_bundle)]) == 0
    return folder / "i"


def environment(script: list[str] | None, step_seconds: float = 0.0) -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    found["STEP_SECONDS"] = str(step_seconds)
    return found if script is None else {**found, "SCRIPT": json.dumps(script)}


@asynccontextmanager
async def over_stdio(bundle: Path, script: list[str] | None, *options: str, seconds: float = 0.0) -> AsyncIterator[Any]:
    args = [*COMMAND, "mcp", "--bundle", str(bundle), *options]
    process = StdioServerParameters(command=sys.executable, args=args, env=environment(script, seconds), cwd=ROOT)
    async with Client(process, read_timeout_seconds=120) as client:
        yield client


@contextmanager
def http_server(bundle: Path, script: list[str] | None, *options: str, **env: str) -> Iterator[str]:
    """The address of a running server."""
    command = [sys.executable, *COMMAND, "mcp", "--http", "--port", "0", "--bundle", str(bundle), *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**environment(script), **env}
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("serving "))
        yield line.split(" at ")[1].strip()
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def error(result: Any) -> str:
    assert result.is_error
    [content] = result.content
    assert "\n" not in content.text and "Traceback" not in content.text
    return str(content.text)


def in_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def synchronous(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return synchronous


@in_a_loop
async def test_a_question_over_stdio(tiny_bundle: Path, photo: Path, index: Path) -> None:
    """The libraries of this server print to stdout all the time: a single such line would end the protocol."""
    async with over_stdio(tiny_bundle, [GAZE, TEXT, ANSWER], "--index", str(index)) as client:
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == TOOLS
        for tool in listed:
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        answer = await client.call_tool("ask", {"image": str(photo), "question": QUESTION, "deadline": "60s"})
        assert not answer.is_error
        assert [c.text for c in answer.content] == ["1889"]
        data = answer.structured_content
        jsonschema.validate(data, listed[0].output_schema)
        assert (data["answer"], data["stop"]) == ("1889", "answered")
        assert [hit["title"] for hit in data["evidence"]] == ["Iron tower"]
        [box] = data["boxes"]
        assert (box["kind"], box["label"], box["step"]) == ("gaze", "x", 1)
        assert box["box"] == [0, 0, 80, 60]  # [0, 0, 500, 500] thousandths of 160x120
        looked = await client.call_tool("look", {"image": str(photo), "question": QUESTION})
        jsonschema.validate(looked.structured_content, listed[1].output_schema)
        assert looked.structured_content["boxes"] == [box]
        assert (looked.structured_content["width"], looked.structured_content["height"]) == (160, 120)
        assert "1889" not in looked.content[0].text
        crop = Image.open(io.BytesIO(base64.b64decode(looked.content[1].data)))
        assert (looked.content[1].mime_type, crop.size) == ("image/jpeg", (80, 60))


@in_a_loop
async def test_searches_of_the_index(tiny_bundle: Path, photo: Path, index: Path) -> None:
    """With the bundle's own engine: the vectors are those of its tower."""
    async with over_stdio(tiny_bundle, None, "--index", str(index)) as client:
        words = await client.call_tool("search_text", {"query": "finished in 1889", "results": 1})
        assert [hit["title"] for hit in words.structured_content["results"]] == ["Iron tower"]
        assert words.content[0].text == "1. Iron tower: Finished in 1889."
        picture = base64.b64encode(photo.read_bytes()).decode()
        for image in (picture, f"data:image/jpeg;base64,{picture}", str(photo)):
            found = await client.call_tool("search_image", {"image": image, "results": 2})
            assert not found.is_error, found.content
            first = found.structured_content["results"][0]
            assert first["title"] == "Iron tower" and first["score"] > 0.99
        part = {"image": picture, "region": [0, 0, 60, 60], "label": "the sea"}
        assert not (await client.call_tool("search_image", part)).is_error


@in_a_loop
async def test_what_is_wrong_is_one_line(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    tiny = {"image": str(photo), "question": QUESTION}
    wrong = [
        ("ask", {"question": QUESTION}, "ask: image is missing"),
        ("ask", {"image": str(photo)}, "ask: question is missing"),
        ("ask", {**tiny, "question": 3}, "question is missing, or no text"),
        ("ask", {**tiny, "colour": "red"}, "ask has no argument 'colour': it takes image, question, deadline"),
        ("ask", {**tiny, "deadline": "soon"}, "deadline of 'soon' is no time"),
        ("ask", {**tiny, "deadline": -1}, "deadline must be a positive number"),
        ("ask", {**tiny, "image": str(tmp_path / "gone.jpg")}, "gone.jpg"),
        ("ask", {**tiny, "image": "data:image/png;base64,%%%"}, "image is not base64"),
        ("look", {**tiny, "image": "A" * 64}, "the picture is not an image"),
        ("look", {**tiny, "image": "http://127.0.0.1:9/a.png"}, "the picture can't be fetched: refused to contact"),
        ("search_text", {"query": "tower", "results": 0}, "results must be a positive number"),
        ("search_text", {"query": "tower"}, "no text search is set up: start the server with --index or --search"),
        ("search_image", {"image": str(photo), "region": [1, 2]}, "region must be four numbers"),
        ("search_image", {"image": str(photo), "region": [300, 0, 400, 50]}, "lies outside of the 160x120 image"),
        ("find", {}, "there is no tool 'find': there are ask, look, search_text, search_image"),
    ]
    async with over_stdio(tiny_bundle, [ANSWER], "--no-index") as client:
        for tool, given, message in wrong:
            said = error(await client.session.call_tool(tool, given))
            assert message in said, (tool, given, said)
        assert (await client.call_tool("ask", tiny)).content[0].text == "1889"  # and it goes on


@in_a_loop
async def test_a_deadline_and_a_cancelled_call_end_a_question(tiny_bundle: Path, photo: Path) -> None:
    """Steps of ten minutes: only what interrupts them lets the next call return at all."""
    given = {"image": str(photo), "question": QUESTION}
    async with over_stdio(tiny_bundle, [ANSWER], "--no-index", seconds=600) as client:
        late = await client.call_tool("ask", {**given, "deadline": "300ms"})
        assert (late.content[0].text, late.structured_content["stop"]) == ("no answer (deadline)", "deadline")
        running = asyncio.create_task(client.call_tool("ask", given))
        await asyncio.sleep(0.5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        late = await client.call_tool("ask", {**given, "deadline": "300ms"})  # the turn is free
        assert late.structured_content["stop"] == "deadline"


@in_a_loop
async def test_over_http_files_are_named_only_where_that_was_allowed(
    tiny_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "a.jpg").write_bytes(photo.read_bytes())
    (allowed / "link.jpg").symlink_to(photo)
    picture = base64.b64encode(photo.read_bytes()).decode()
    with http_server(tiny_bundle, [GAZE, ANSWER], "--no-index", "--pictures", str(allowed)) as address:
        async with Client(address, read_timeout_seconds=120) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS
            for image in (picture, str(allowed / "a.jpg")):
                answer = await client.call_tool("ask", {"image": image, "question": QUESTION})
                assert answer.structured_content["answer"] == "1889"
                assert answer.structured_content["boxes"][0]["box"] == [0, 0, 80, 60]
            for image in (str(photo), str(allowed / "link.jpg"), str(allowed / ".." / "x.jpg")):
                said = error(await client.call_tool("ask", {"image": image, "question": QUESTION}))
                assert "lies outside of the allowed folders" in said
    with http_server(tiny_bundle, [ANSWER], "--no-index") as address:
        async with Client(address, read_timeout_seconds=120) as client:
            said = error(await client.call_tool("ask", {"image": str(photo), "question": QUESTION}))
            assert "start the server with --pictures FOLDER" in said


@in_a_loop
async def test_an_address_that_was_allowed(tiny_bundle: Path, photo: Path) -> None:
    def send(handler: Any, call: web.Call) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/jpeg")
        handler.send_header("Content-Length", str(photo.stat().st_size))
        handler.end_headers()
        handler.wfile.write(photo.read_bytes())

    with WebServer() as site:
        site.routes["/photo.jpg"] = send
        given = {"image": f"{site.url}/photo.jpg", "question": QUESTION}
        async with over_stdio(tiny_bundle, [ANSWER], "--no-index", "--allow-address", site.url) as client:
            assert (await client.call_tool("ask", given)).structured_content["answer"] == "1889"


def test_who_may_ask_over_http(tiny_bundle: Path) -> None:
    """The checks of `gog-edge serve`: key, host and origin."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()

    def code(address: str, **headers: str) -> int:
        fixed = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        request = urllib.request.Request(address, body, {**fixed, **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as e:
            return e.code

    with http_server(tiny_bundle, [ANSWER], "--no-index", "--api-key-env", "KEY", KEY="secret") as address:
        assert code(address) == 401
        key = {"Authorization": "Bearer secret"}
        assert code(address, **key, Host="evil.example") == 403
        assert code(address, **key, Origin="https://evil.example") == 403
        assert code(address, **key) not in (401, 403)


def test_ctrl_c_and_a_closed_stdin_end_the_process(tiny_bundle: Path) -> None:
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    hello = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}).encode() + b"\n"
    command = [sys.executable, *COMMAND, "mcp", "--bundle", str(tiny_bundle), "--no-index"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    for interrupted, code in ((True, -signal.SIGINT), (False, 0)):
        with subprocess.Popen(command, env=environment([ANSWER]), **pipes) as process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            process.stdin.write(hello)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "gog-edge"
            if interrupted:
                process.send_signal(signal.SIGINT)
            else:
                process.stdin.close()
            assert process.wait(60) == code
            assert process.stdout.read() == b"" and b"Traceback" not in process.stderr.read()


def test_what_the_command_is_given(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mcp", "--bundle", str(tiny_bundle), "--allow-address", "camera"]) == 2
    assert capsys.readouterr().err.startswith("gog-edge: --allow-address: refused the address 'camera'")
    assert run(["mcp", "--bundle", "./no such bundle"]) == 2
    assert run(["mcp", "--http", "--host", "", "--bundle", str(tiny_bundle)]) == 2
    assert "Traceback" not in capsys.readouterr().err
