"""`gog-edge ask --search FILE` with every kind of provider: pages, uploads, MCP tools, records, fall-backs, a cache."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.asking import ANSWER, GAZE, GLANCE, KEY, TEXT, TOWER, Play, ask, sent
from tests.search import mcp_server
from tests.search import server as web
from tests.search.server import WebServer

LEAD = "The iron tower was built for a world exhibition and is three hundred metres high, they say. " * 3
FACT = "It was finished in the year 1889, after two years, two months and five days of work on it. " * 2
ARTICLE = f"<html><head><title>Tower</title></head><body><main><p>{LEAD}</p><p>{FACT}</p></main></body></html>"


def configure(text: str) -> None:
    Path("search.toml").write_text(text)


def observations(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Of all steps of the answer that was printed as JSON."""
    return [o for step in json.loads(capsys.readouterr().out)["steps"] for o in step["observations"]]


def test_pages_are_read_for_a_search_and_on_a_visit(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`read` puts passages in the place of snippets; a policy that visits gets the page, cut to its goal."""
    site.routes |= {
        "/tower": web.html(ARTICLE),
        "/search": web.answer({"organic": [{**TOWER, "link": f"{site.url}/tower"}]}),
    }
    configure(
        f'[[provider]]\npreset = "serper"\nendpoint = "{site.url}"\nread = 1\npassage_chars = 220\ncache_hours = 0\n'
        f'[[provider]]\nkind = "fetch"\nallow = ["127.0.0.1:{site.port}"]\ncache_hours = 0\n'
    )
    visit = {"name": "visit", "arguments": {"url": f"{site.url}/tower", "goal": "year finished"}}
    search = {"name": "web_search", "arguments": {"queries": ["year it was finished"]}}
    calls = [f"<think>t</think><tool_call>\n{json.dumps(call)}\n</tool_call>" for call in (search, visit)]
    play([*calls, "<think>t</think><answer>1889</answer>"])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--dialect", "webwatcher", "--json") == 0
    searched, visited = observations(capsys)
    assert "1889" in searched["hits"][0]["text"] and "exhibition" not in searched["hits"][0]["text"]
    assert "1889" in visited["text"] and not visited["error"]


def test_a_crop_is_uploaded_and_searched_by_its_address(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: list[tuple[int, int]] = []

    def upload(handler: Any, call: web.Call) -> None:
        sizes.append(Image.open(io.BytesIO(call.body.partition(b"\r\n\r\n")[2])).size)
        web.send(handler, b'{"link": "https://host.example/crop.jpg"}')

    site.routes |= {"/up": upload, "/by-image": web.answer({"found": [{"name": "A tower"}]})}
    configure(
        f"""
        [[provider]]
        name = "mine"
        cache_hours = 0
        [provider.upload]
        method = "POST"
        url = "{site.url}/up"
        multipart = {{ file = "{{image_jpeg}}" }}
        results = {{ source = "link" }}
        [provider.image]
        method = "POST"
        url = "{site.url}/by-image"
        headers = {{ Authorization = "Bearer ${{SERPER_API_KEY}}" }}
        json = {{ url = "{{image_url}}", n = "{{k}}" }}
        results = {{ items = "found", title = "name" }}
        """
    )
    play([GAZE, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--json") == 0
    assert observations(capsys)[0]["hits"][0]["title"] == "A tower"
    assert (80, 60) in sizes  # half of each side of the photo; its early whole search was uploaded as well
    assert {call.json["url"] for call in sent(site, "/by-image")} == {"https://host.example/crop.jpg"}
    assert sent(site, "/by-image")[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("early", ["true", "false"])
def test_a_provider_can_want_to_be_asked_first(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str], early: str
) -> None:
    """Searches that are paid for: none is begun before the policy asks."""
    configure(Path("search.toml").read_text() + f"early = {early}\n")
    play([ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--image-url", "https://example.com/t.jpg") == 0
    until = time.monotonic() + (web.IN_TIME if early == "true" else 0.3)
    while not sent(site, "/lens") and time.monotonic() < until:  # nobody waits for a search that was not asked for
        time.sleep(0.02)
    assert len(sent(site, "/lens")) == (early == "true")
    play([GLANCE, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--image-url", "https://example.com/t.jpg", "--json") == 0
    assert capsys.readouterr().out.count("Tower at night") > 0
    configure(Path("search.toml").read_text().replace(f"early = {early}", "early = 1"))
    assert ask(tiny_bundle, photo, "--search", "search.toml") == 2
    assert "early = 1 has the wrong type" in capsys.readouterr().err


def test_the_next_provider_is_asked_when_one_fails(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.routes["/res/v1/web/search"] = web.answer({}, 500)
    brave = f'[[provider]]\npreset = "brave"\nendpoint = "{site.url}"\nretries = 1\ncache_hours = 0\n'
    configure(brave + Path("search.toml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAVE_API_KEY", KEY)
        play([TEXT, ANSWER])
        assert ask(tiny_bundle, photo, "--search", "search.toml", "--json") == 0
    found = observations(capsys)[0]
    assert (found["provider"], found["hits"][0]["title"]) == ("serper", "Iron tower")
    assert len(sent(site, "/res/v1/web/search")) == 2


def test_mcp_tools_are_providers(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = json.dumps([sys.executable, mcp_server.__file__])
    configure(
        f'[[provider]]\nkind = "mcp"\ncommand = {command}\ncache_hours = 0\n[provider.text]\ntool = "search"\n'
        'arguments = { q = "{query}", n = "{k}" }\nresults = { items = "rows", title = "t", source = "u" }\n'
    )
    play([TEXT, ANSWER])
    assert ask(tiny_bundle, photo, "--search", "search.toml", "--json") == 0
    assert observations(capsys)[0]["hits"][0]["title"] == "about tower year"


def test_what_was_recorded_answers_without_a_network(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Path("search.toml").read_text() + 'record = "searches.jsonl"\n')
    play([TEXT, ANSWER])
    answers = []
    for _ in range(2):
        assert ask(tiny_bundle, photo, "--search", "search.toml", "--json") == 0
        answers.append(observations(capsys)[0]["hits"])
        site.routes.clear()
        configure('[[provider]]\nkind = "replay"\npath = "searches.jsonl"\n')
    assert answers[0] == answers[1] != []
    assert len(sent(site, "/search")) == 1
    assert KEY not in Path("searches.jsonl").read_text()


def test_results_are_kept_for_the_next_command(
    site: WebServer, play: Play, tiny_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Path("search.toml").read_text().replace("cache_hours = 0", "cache_hours = 1"))
    play([TEXT, ANSWER])
    for _ in range(2):
        assert ask(tiny_bundle, photo, "--search", "search.toml", "--json") == 0
        assert observations(capsys)[0]["hits"][0]["title"] == "Iron tower"
    assert len(sent(site, "/search")) == 1
