"""Presets and own descriptions against servers that speak the real wire formats; keys; faults; reading pages."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gog_edge.errors import SearchError, SearchTimeoutError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.search.base import Deadline, ImageQuery, SearchProvider
from gog_edge.search.config import load_providers, presets
from gog_edge.search.web.address import AddressPolicy
from gog_edge.search.web.http import RetryableError
from gog_edge.search.web.json_api import retry_after
from gog_edge.search.web.page import PageReader
from gog_edge.search.web.template import Secrets, fill
from gog_edge.types import Region
from tests.search import server as web
from tests.search.server import WebServer

KEY = "k3y-that-must-not-leak"
FRAME = Frame.open(np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3).astype(np.uint8))


@pytest.fixture
def site() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPAPI_API_KEY", "SERPER_API_KEY", "BRAVE_API_KEY", "MY_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("JINA_API_KEY", raising=False)


def configure(tmp_path: Path, site: WebServer, text: str) -> SearchProvider:
    """The first provider of a configuration; ENDPOINT is the server."""
    path = tmp_path / "search.toml"
    path.write_text(text.replace("ENDPOINT", site.url), encoding="utf-8")
    return load_providers(path)[0]


def preset(tmp_path: Path, site: WebServer, name: str, more: str = "") -> SearchProvider:
    return configure(tmp_path, site, f'[[provider]]\npreset = "{name}"\nendpoint = "ENDPOINT"\nretries = 0\n{more}')


def soon(seconds: float = 3.0) -> Deadline:
    return Deadline.after(seconds)


def test_serpapi(tmp_path: Path, site: WebServer) -> None:
    def search(handler: Any, call: web.Call) -> None:
        assert call.query["api_key"] == KEY
        if call.query["engine"] == "google_lens":
            assert call.query["url"] == "https://example.com/cat.jpg"
            body: Any = {
                "visual_matches": [
                    {
                        "position": 1,
                        "title": "A cat",
                        "link": "https://c.example",
                        "source": "Cats",
                        "thumbnail": "https://t.example/1.jpg",
                    }
                ]
            }
        elif call.query["q"] == "nothing":
            body = {"error": "Google hasn't returned any results for this query."}
        elif call.query["q"] == "bad":
            body = {"error": f"Invalid API key {KEY}. Your API key should be here"}
        else:
            assert call.query["q"] == "capital of Chad? ${HOME} {k}"
            body = {
                "organic_results": [
                    {"position": 1, "title": "Chad", "link": "https://x.example/chad", "snippet": "N'Djamena"},
                    {"position": 2, "title": "", "link": "https://x.example/empty"},
                ]
            }
        web.send(handler, json.dumps(body).encode())

    site.routes["/search.json"] = search
    provider = preset(tmp_path, site, "serpapi")
    assert provider.kinds == {"text", "image"}
    hits = provider.search_text("capital of Chad? ${HOME} {k}", k=5, deadline=soon())
    assert [(h.title, h.text, h.source) for h in hits] == [("Chad", "N'Djamena", "https://x.example/chad")]
    assert provider.search_text("nothing", k=5, deadline=soon()) == []
    with pytest.raises(SearchError, match="Invalid API key") as caught:
        provider.search_text("bad", k=5, deadline=soon())
    assert KEY not in str(caught.value)
    hit = provider.search_image(ImageQuery(FRAME, url="https://example.com/cat.jpg"), k=5, deadline=soon())[0]
    assert (hit.title, hit.text, hit.image) == ("A cat", "Cats", "https://t.example/1.jpg")
    with pytest.raises(SearchError, match="upload"):
        provider.search_image(
            ImageQuery(FRAME, Region(0, 0, 9, 9), url="https://example.com/cat.jpg"), k=5, deadline=soon()
        )


def test_serper_brave_searxng_wikipedia(tmp_path: Path, site: WebServer) -> None:
    def serper(handler: Any, call: web.Call) -> None:
        assert (call.method, call.headers["x-api-key"], call.json) == ("POST", KEY, {"q": "chad", "num": 3})
        body = {
            "searchParameters": {"q": "chad"},
            "organic": [{"title": "Chad", "link": "https://a.example", "snippet": "s", "position": 1}],
        }
        web.send(handler, json.dumps(body).encode())

    def lens(handler: Any, call: web.Call) -> None:
        assert call.json == {"url": "https://example.com/i.png"}
        web.send(
            handler,
            json.dumps(
                {
                    "organic": [
                        {
                            "title": "Flag",
                            "source": "W",
                            "link": "https://w.example",
                            "thumbnailUrl": "https://w.example/t",
                        }
                    ]
                }
            ).encode(),
        )

    def brave(handler: Any, call: web.Call) -> None:
        assert (call.headers["x-subscription-token"], call.query) == (KEY, {"q": "chad", "count": "3"})
        body = {
            "web": {
                "results": [
                    {
                        "title": "Chad",
                        "url": "https://b.example",
                        "description": "The <strong>Republic</strong> of Chad &amp; co",
                        "thumbnail": {"src": "https://b.example/t"},
                    }
                ]
            }
        }
        web.send(handler, json.dumps(body).encode(), content_type="application/json; charset=utf-8")

    site.routes = {
        "/search": lambda h, c: (serper if c.method == "POST" else searx)(h, c),
        "/lens": lens,
        "/res/v1/web/search": brave,
        "/w/rest.php/v1/search/page": web.answer(
            {"pages": [{"key": "Chad_(x)", "title": "Chad", "excerpt": '<span class="m">Chad</span> is'}]}
        ),
    }
    searx = web.answer(
        {"query": "chad", "results": [{"title": "Chad", "url": "https://s.example", "content": "c", "score": 2.5}]}
    )
    hits = preset(tmp_path, site, "serper").search_text("chad", k=3, deadline=soon())
    assert (hits[0].source, hits[0].text) == ("https://a.example", "s")
    hits = preset(tmp_path, site, "serper").search_image(
        ImageQuery(FRAME, url="https://example.com/i.png"), k=3, deadline=soon()
    )
    assert (hits[0].title, hits[0].image) == ("Flag", "https://w.example/t")
    hits = preset(tmp_path, site, "brave").search_text("chad", k=3, deadline=soon())
    assert (hits[0].text, hits[0].image) == ("The Republic of Chad & co", "https://b.example/t")
    hits = preset(tmp_path, site, "searxng").search_text("chad", k=3, deadline=soon())
    assert (hits[0].score, hits[0].entity) == (2.5, "https://s.example")
    hits = preset(tmp_path, site, "wikipedia").search_text("chad", k=3, deadline=soon())
    assert (hits[0].text, hits[0].source) == ("Chad is", "https://en.wikipedia.org/wiki/Chad_(x)")


def test_jina_reads_pages_and_is_not_sent_private_addresses(tmp_path: Path, site: WebServer) -> None:
    def reader(handler: Any, call: web.Call) -> None:
        assert "authorization" not in call.headers
        assert call.json == {"url": "http://1.1.1.1/page?x=1"}
        web.send(
            handler,
            json.dumps({"code": 200, "data": {"title": "T", "url": "http://1.1.1.1/page", "content": "Body"}}).encode(),
        )

    site.routes["/"] = reader
    provider = preset(tmp_path, site, "jina")
    page = provider.read_page("http://1.1.1.1/page?x=1", deadline=soon())
    assert (page.title, page.text, page.url) == ("T", "Body", "http://1.1.1.1/page")
    with pytest.raises(SearchError, match="not a public"):
        provider.read_page("http://192.168.0.1/admin", deadline=soon())


def test_own_description_with_upload_multipart_and_base64(tmp_path: Path, site: WebServer) -> None:
    sizes: list[tuple[int, int]] = []

    def upload(handler: Any, call: web.Call) -> None:
        head, _, rest = call.body.partition(b"\r\n\r\n")
        assert b'name="file"; filename="image.jpg"' in head
        sizes.append(Image.open(io.BytesIO(rest)).size)
        assert b'name="key"' in rest
        web.send(handler, json.dumps({"data": {"link": "https://host.example/x.jpg"}}).encode())

    def lens(handler: Any, call: web.Call) -> None:
        assert call.json["u"] == "https://host.example/x.jpg"
        web.send(handler, json.dumps({"r": [{"t": "found", "s": 0.5}]}).encode())

    site.routes = {"/up": upload, "/lens": lens}
    provider = configure(
        tmp_path,
        site,
        """
        [[provider]]
        name = "mine"
        image_side = 32
        [provider.upload]
        method = "POST"
        url = "ENDPOINT/up"
        multipart = { file = "{image_jpeg}", key = "${MY_KEY}" }
        results = { source = "data.link" }
        [provider.image]
        method = "POST"
        url = "ENDPOINT/lens"
        json = { u = "{image_url}", n = "{k}" }
        results = { items = "r", title = "t", score = "s" }
        """,
    )
    hit = provider.search_image(ImageQuery(FRAME, Region(10, 10, 74, 42)), k=2, deadline=soon())[0]
    assert (hit.title, hit.score) == ("found", 0.5)
    assert sizes == [(32, 16)]


@pytest.mark.parametrize(
    ("route", "error", "says"),
    [
        (web.answer({"e": 1}, 429, retry_after="7"), RetryableError, "HTTP 429"),
        (web.answer({"e": 1}, 500), RetryableError, "HTTP 500"),
        (web.answer({"message": f"bad key {KEY}"}, 401), SearchError, "check its key"),
        (web.html("<html>Just a moment…</html>"), SearchError, "text/html instead of JSON"),
        (web.answer(b"{not json"), SearchError, "not valid JSON"),
        (web.answer(b"[" * 100000), SearchError, "not valid JSON"),
        (web.answer({"organic": {"a": 1}}), SearchError, "no list"),
        (web.cut_off, RetryableError, "cut off"),
        (web.huge(100 << 20), SearchError, "larger than"),
        (web.silent(), SearchError, "in time|no answer"),
        (web.redirect("http://169.254.169.254/"), SearchError, "redirect"),
    ],
)
def test_faults_end_as_search_errors_without_keys(
    tmp_path: Path, site: WebServer, route: web.Route, error: type[SearchError], says: str
) -> None:
    site.routes["/search"] = route
    provider = preset(tmp_path, site, "serper")
    with pytest.raises(error, match=says) as caught:
        provider.search_text("x", k=3, deadline=soon(1.0 if "in time" in says else 20.0))
    message = str(caught.value)
    assert KEY not in message
    assert "\n" not in message
    if isinstance(caught.value, RetryableError) and "429" in message:
        assert caught.value.retry_after == 7


def test_empty_and_odd_answers_give_fewer_hits(tmp_path: Path, site: WebServer) -> None:
    provider = preset(tmp_path, site, "serper")
    odd = [None, 3, "x", [], {}, {"title": ["a"]}, {"title": 5, "link": {"a": 1}}, {"title": "x" * 99999}]
    site.routes["/search"] = web.answer({"organic": odd})
    hits = provider.search_text("x", k=9, deadline=soon())
    assert [h.title[:3] for h in hits] == ["a", "5", "xxx"]
    assert len(hits[-1].title) <= 8000
    named = ["https://x.example/1.jpg", "/etc/passwd", "file:///etc/passwd", "C:\\x.png", "data:image/png;base64,AA"]
    site.routes["/search"] = web.answer({"organic": [{"title": "x", "imageUrl": name} for name in named]})
    hits = provider.search_text("y", k=9, deadline=soon())
    assert [h.image for h in hits] == ["https://x.example/1.jpg", "", "", "", ""]  # the web names no file of ours
    site.routes["/search"] = web.answer({})
    assert provider.search_text("x", k=9, deadline=soon()) == []


def test_a_missing_key_is_named(tmp_path: Path, site: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(SearchError, match=r"^serper: .*SERPER_API_KEY is not set"):
        preset(tmp_path, site, "serper").search_text("x", k=1, deadline=soon())


def test_keys_do_not_show_in_hits_or_reprs(tmp_path: Path, site: WebServer) -> None:
    site.routes["/search"] = web.answer({"organic": [{"title": f"echo {KEY}", "link": f"https://x.example/?k={KEY}"}]})
    provider = preset(tmp_path, site, "serper")
    hits = provider.search_text("x", k=1, deadline=soon())
    assert KEY not in repr(hits)
    assert KEY not in repr(vars(provider)) + repr(Secrets({"A": KEY}))


def test_templates_are_filled_in_one_pass() -> None:
    secrets = Secrets({"K": "se$cret"})
    assert fill("{query}", {"query": "${K} {k}"}, secrets) == "${K} {k}"
    assert fill({"a": ["{k}", "n={k}"], "b": "${K}"}, {"k": 3}, secrets) == {"a": [3, "n=3"], "b": "se$cret"}
    assert fill({"a": "x ${NONE?}"}, {}, secrets) == {}
    assert secrets.redact("got se$cret and se%24cret") == "got [key] and [key]"
    with pytest.raises(SearchError, match="NONE"):
        fill("${NONE}", {}, secrets)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("12") == 12
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None
    assert retry_after("") is None


LEAD = "Chad, officially the Republic of Chad, is a landlocked country in North and Central Africa. " * 2
BODY = "Lake Chad, after which the country is named, is the second-largest wetland of the continent. " * 2
ARTICLE = f"""<html><head><title>Chad - Wiki</title><meta charset="utf-8"></head><body>
<nav><a href="/">Home</a> <a href="/x">About us and many other links of the navigation</a></nav>
<main><h1>Chad</h1><p>{LEAD}</p><h2>Geography</h2><p>{BODY}</p><ul><li>Short item</li></ul>
<table><tr><th>Capital</th><td>N'Djamena</td></tr></table></main><script>alert("evil")</script>
<footer>Copyright and a very long imprint that nobody reads at all, ever, really.</footer></body></html>"""


def test_reading_turns_search_results_into_passages(tmp_path: Path, site: WebServer) -> None:
    site.routes = {
        "/search": web.answer(
            {"organic": [{"title": f"r{i}", "link": f"{site.url}/p{i}", "snippet": f"snippet {i}"} for i in range(4)]}
        ),
        "/p0": web.html(ARTICLE),
        "/p1": web.silent(),
        "/p2": web.answer({}, 500),
        "/p3": web.html(ARTICLE),
    }
    provider = configure(
        tmp_path,
        site,
        f"""
        [[provider]]
        preset = "serper"
        endpoint = "ENDPOINT"
        read = 3
        passage_chars = 150
        [[provider]]
        kind = "fetch"
        retries = 0
        allow = ["127.0.0.1:{site.port}"]
        """,
    )
    began = time.monotonic()
    hits = provider.search_text("the wetland Lake Chad", k=4, deadline=soon(3.0))
    assert time.monotonic() - began < web.IN_TIME
    assert hits[0].text == BODY[: len(BODY) // 2 - 1]
    assert [h.text for h in hits[1:]] == ["snippet 1", "snippet 2", "snippet 3"]
    whole = provider.read_page(f"{site.url}/p0", deadline=soon())
    assert "N'Djamena" in whole.text
    assert whole.title == "Chad - Wiki"
    with pytest.raises(SearchError, match="not a public address"):
        provider.read_page("http://127.0.0.1/", deadline=soon())


def test_dead_pages_do_not_close_the_way_to_others(tmp_path: Path, site: WebServer) -> None:
    site.routes = {"/dead": web.answer({}, 500), "/alive": web.html(ARTICLE)}
    reader = configure(
        tmp_path, site, f'[[provider]]\nkind = "fetch"\nretries = 0\nallow = ["127.0.0.1:{site.port}"]\n'
    )
    for _ in range(8):
        with pytest.raises(SearchError, match="HTTP 500"):
            reader.read_page(f"{site.url}/dead", deadline=soon())
    assert "N'Djamena" in reader.read_page(f"{site.url}/alive", deadline=soon()).text


def test_the_page_reader_decodes_and_refuses(site: WebServer) -> None:
    reader = PageReader(AddressPolicy(frozenset({f"127.0.0.1:{site.port}"})), max_bytes=100_000)
    latin = "<p>" + "Ärger über Öl. " * 20
    site.routes = {
        "/latin": web.answer(latin.encode("latin-1"), content_type="text/html; charset=iso-8859-1"),
        "/meta": web.answer(b'<meta charset="windows-1252">' + latin.encode("cp1252"), content_type="text/html"),
        "/rot": web.answer(b'<meta charset="rot13"><p>hello there', content_type="text/html"),
        "/plain": web.answer(b"just text", content_type="text/plain"),
        "/pdf": web.answer(b"%PDF-1.7", content_type="application/pdf"),
        "/empty": web.html("<html><body></body></html>"),
        "/big": web.huge(100 << 20, "text/plain"),
        "/gone": web.html(
            "no",
        ),
        "/png": web.answer(png(), content_type="image/png"),
    }

    def read(path: str) -> str:
        return reader.read_page(site.url + path, deadline=soon()).text

    assert read("/latin").startswith("Ärger über Öl.")
    assert read("/meta").startswith("Ärger über Öl.")
    assert read("/rot") == "hello there"
    assert read("/plain") == "just text"
    assert reader.read_page(site.url + "/big", deadline=soon()).truncated
    for path, says in (("/pdf", "application/pdf"), ("/empty", "no readable"), ("/none", "HTTP 404")):
        with pytest.raises(SearchError, match=says):
            read(path)
    assert reader.read_image(site.url + "/png", deadline=soon()).width == 7
    for path in ("/plain", "/big"):
        with pytest.raises(SearchError):
            reader.read_image(site.url + path, deadline=soon())
    site.routes["/png"] = web.answer(b"not a picture", content_type="image/png")
    with pytest.raises(SearchError):
        reader.read_image(site.url + "/png", deadline=soon())


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (7, 5)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no \\[\\[provider\\]\\]"),
        ("x = ", "not valid TOML"),
        ("[[provider]]\npreset = 'serpr'", "did you mean 'serper'"),
        ("[[provider]]\npreset = 'serper'\ntimeot = 3", "did you mean 'timeout'"),
        ("[[provider]]\npreset = 'serper'\ntimeout = 'x'", "a timeout of 'x' is no time"),
        ("[[provider]]\npreset = 'serper'\ntimeout = 0", "timeout > 0"),
        ("[[provider]]\nkind = 'nope'", "not one of"),
        ("[[provider]]\nname = 'x'", "describes no"),
        ("[[provider]]\n[provider.text]\nquery = {}", "needs `url`"),
        ("[[provider]]\n[provider.text]\nurl = 'http://{query}/'", "fixed http"),
        ("[[provider]]\n[provider.text]\nurl = 'ftp://x/'", "only http"),
        ("[[provider]]\n[provider.text]\nurl = 'http://x/'\nmethod = 'BREW'", "BREW"),
        ("[[provider]]\n[provider.text]\nurl = 'http://x/'\nresults = { itms = 'a' }", "results.itms"),
        ("[[provider]]\npreset = 'serper'\nread = 2", "page reader"),
        ("[[provider]]\nkind = 'mcp'", "command"),
        ("[[provider]]\nkind = 'mcp'\nurl = 'http://x/'", "describes no"),
        ("[[provider]]\nkind = 'replay'", "path"),
        ("[[provider]]\nkind = 'replay'\npath = 'none.jsonl'", "can't be read"),
        ("[other]\na = 1", "unknown key 'other'"),
    ],
)
def test_wrong_configurations_are_named_when_they_are_loaded(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says) as caught:
        load_providers(path)
    assert "\n" not in str(caught.value)


def test_every_preset_loads(tmp_path: Path) -> None:
    assert presets() == ["brave", "jina", "searxng", "serpapi", "serper", "wikipedia"]
    path = tmp_path / "s.toml"
    path.write_text("\n".join(f"[[provider]]\npreset = '{p}'" for p in presets()), encoding="utf-8")
    assert len(load_providers(path)) == len(presets())


def test_results_are_kept_on_disk_for_a_while(tmp_path: Path, site: WebServer) -> None:
    site.routes["/search"] = web.answer({"organic": [{"title": "t", "link": "https://x.example"}]})
    path = tmp_path / "s.toml"
    path.write_text(f"[[provider]]\npreset = 'serper'\nendpoint = '{site.url}'", encoding="utf-8")
    for _ in range(2):
        provider = load_providers(path, cache_dir=tmp_path / "cache")[0]
        assert provider.search_text("same  query", k=3, deadline=soon())[0].title == "t"
    provider.search_text("same query", k=3, deadline=soon())
    provider.search_text("same query", k=4, deadline=soon())
    assert len(site.calls) == 2
    assert KEY.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "cache").iterdir())


def test_slow_providers_end_with_the_callers_deadline(tmp_path: Path, site: WebServer) -> None:
    site.routes["/search"] = web.silent()
    provider = preset(tmp_path, site, "serper", "timeout = 5\n")
    began = time.monotonic()
    with pytest.raises(SearchTimeoutError):
        provider.search_text("x", k=1, deadline=soon(0.3))
    assert time.monotonic() - began < web.IN_TIME
