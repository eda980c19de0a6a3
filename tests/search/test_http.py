"""The HTTP client against a real server: deadlines in every phase, sizes, encodings, redirects, addresses."""

from __future__ import annotations

import gzip
import ipaddress
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.search.base import Deadline
from gog_edge.search.web import address as address_module
from gog_edge.search.web.address import AddressPolicy, is_public, split_url
from gog_edge.search.web.http import HttpClient, Request, Response, RetryableError
from tests.search import server as web
from tests.search.server import WebServer


@pytest.fixture
def site() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


def get(site: WebServer, path: str, seconds: float = 3.0, **options: object) -> Response:
    client = HttpClient(AddressPolicy().allowing(site.url))
    try:
        return client.send(Request(site.url + path), Deadline.after(seconds), **options)  # type: ignore[arg-type]
    finally:
        client.close()


def test_bodies_arrive_whole_and_connections_are_reused(site: WebServer) -> None:
    site.routes["/a"] = web.answer({"x": 1})
    site.routes["/z"] = web.answer(gzip.compress(b"packed"), content_encoding="gzip")
    client = HttpClient(AddressPolicy().allowing(site.url))
    for _ in range(3):
        assert client.send(Request(site.url + "/a"), Deadline.after(3)).body == b'{"x": 1}'
    assert client.send(Request(site.url + "/z"), Deadline.after(3)).body == b"packed"
    assert site.connections == 1
    client.close()


def test_an_idle_connection_that_the_server_closed_is_replaced(site: WebServer) -> None:
    def close_after(handler: object, call: object) -> None:
        web.send(handler, b"{}")  # type: ignore[arg-type]
        handler.close_connection = True  # type: ignore[attr-defined]

    site.routes["/a"] = close_after
    client = HttpClient(AddressPolicy().allowing(site.url))
    for _ in range(3):
        assert client.send(Request(site.url + "/a"), Deadline.after(3)).status == 200
        time.sleep(0.02)
    assert site.connections == 3


@pytest.mark.parametrize("path", ["/silent", "/drip"])
def test_the_deadline_holds_over_slow_servers(site: WebServer, path: str) -> None:
    site.routes = {"/silent": web.silent(), "/drip": web.slow_drip()}
    began = time.monotonic()
    with pytest.raises(SearchTimeoutError):
        get(site, path, 0.3)
    assert time.monotonic() - began < web.IN_TIME


def test_the_deadline_holds_while_headers_drip() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 3000:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.02)

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    began = time.monotonic()
    with pytest.raises(SearchTimeoutError):
        HttpClient(AddressPolicy().allowing(url)).send(Request(url), Deadline.after(0.3))
    assert time.monotonic() - began < web.IN_TIME
    listener.close()


def test_a_refused_connection_can_be_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(RetryableError):
        HttpClient(AddressPolicy().allowing(url)).send(Request(url), Deadline.after(2))


@pytest.mark.parametrize("path", ["/cut", "/chunked"])
def test_cut_off_answers_are_seen(site: WebServer, path: str) -> None:
    site.routes = {"/cut": web.cut_off, "/chunked": web.cut_off_chunked}
    with pytest.raises(RetryableError):
        get(site, path)


@pytest.mark.parametrize("path", ["/length", "/chunked", "/bomb"])
def test_large_bodies_are_refused_or_cut_while_they_stream(site: WebServer, path: str) -> None:
    hundred = 100 << 20
    site.routes = {
        "/length": web.huge(hundred),
        "/chunked": web.huge(hundred, chunked=True),
        "/bomb": web.gzip_bomb(32 << 20),
    }
    with pytest.raises(SearchError, match="larger than"):
        get(site, path, 20, max_bytes=1 << 20)
    cut = get(site, path, 20, max_bytes=1 << 20, truncate=True)
    assert (len(cut.body), cut.truncated) == (1 << 20, True)


def test_a_bomb_is_not_unpacked_beyond_the_limit(site: WebServer) -> None:
    """32 KiB that would become 32 MiB: what is held in memory stays near the limit."""
    site.routes["/bomb"] = web.gzip_bomb(32 << 20)
    tracemalloc.start()
    try:
        get(site, "/bomb", 20, max_bytes=1 << 20, truncate=True)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_garbage_is_not_http(site: WebServer) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(SearchError, match="not a valid HTTP answer"):
        HttpClient(AddressPolicy().allowing(url)).send(Request(url), Deadline.after(2))
    listener.close()


def test_redirects_are_followed_a_few_times_without_keys(site: WebServer) -> None:
    site.routes = {
        "/a": web.redirect("/b"),
        "/b": web.redirect("/c", 307),
        "/c": web.answer({}),
        "/loop": web.redirect("/loop"),
    }
    client = HttpClient(AddressPolicy().allowing(site.url))
    request = Request(site.url + "/a", headers={"Authorization": "secret", "Accept": "text/html"})
    response = client.send(request, Deadline.after(3))
    assert response.url == site.url + "/c"
    assert site.calls[0].headers["authorization"] == "secret"
    assert "authorization" not in site.calls[2].headers
    with pytest.raises(SearchError, match="redirects"):
        client.send(Request(site.url + "/loop"), Deadline.after(3))


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:1/",
        "http://localhost/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://127.1/",
        "http://0.0.0.0/",
        "http://[64:ff9b::7f00:1]/",
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://127.0.0.1/",
        "http://user:pw@example.com/",
        "javascript:alert(1)",
        "//",
    ],
)
def test_private_addresses_are_refused_directly_and_behind_a_redirect(site: WebServer, to: str) -> None:
    client = HttpClient(AddressPolicy().allowing(site.url))
    if "://" in to or to == "//":
        with pytest.raises(SearchError):
            client.send(Request(to), Deadline.after(2))
    site.routes["/go"] = web.redirect(to)
    with pytest.raises(SearchError):
        client.send(Request(site.url + "/go"), Deadline.after(2))
    assert len(site.calls) <= 7


def test_the_address_that_was_checked_is_the_one_that_is_dialled(
    site: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers first with a public, then with a private address gains nothing (DNS rebinding)."""
    asked: list[str] = []

    def fake(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    dialled: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(address_module.socket, "getaddrinfo", fake)
    monkeypatch.setattr(socket, "create_connection", refuse)
    client = HttpClient(AddressPolicy())
    with pytest.raises(RetryableError):
        client.send(Request("http://rebind.example/"), Deadline.after(2))
    assert dialled == [("93.184.216.34", 80)]
    with pytest.raises(SearchError, match="not a public address"):
        client.send(Request("http://rebind.example/"), Deadline.after(2))


def test_a_slow_name_server_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module.socket, "getaddrinfo", lambda *a, **k: time.sleep(web.FOREVER) or [])
    began = time.monotonic()
    with pytest.raises(SearchTimeoutError, match="name server"):
        HttpClient(AddressPolicy()).send(Request("http://slow.example/"), Deadline.after(0.2))
    assert time.monotonic() - began < web.IN_TIME


def test_unusual_ports_of_public_hosts_are_refused() -> None:
    with pytest.raises(SearchError, match="port"):
        HttpClient(AddressPolicy()).send(Request("http://1.1.1.1:22/"), Deadline.after(1))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://user:pw@example.com/", "credentials"),
        ("http://user@example.com/", "credentials"),
        ("https:///x", "no host"),
        ("file:///etc/passwd", "only http and https"),
        ("http://a.example/x y", "spaces"),
        ("http://a.example/" + "x" * 5000, "too long"),
        ("http://[::1", "not a valid URL"),
    ],
)
def test_addresses_are_refused_before_any_name_is_looked_up(url: str, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        split_url(url)


def test_messages_hold_no_query(site: WebServer) -> None:
    site.routes["/s"] = web.cut_off
    with pytest.raises(SearchError) as caught:
        get(site, "/s?api_key=verysecret")
    assert "verysecret" not in str(caught.value)


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_mapped_addresses_are_judged_by_what_they_carry(v4: ipaddress.IPv4Address) -> None:
    for text in (f"::ffff:{v4}", f"64:ff9b::{v4}"):
        assert is_public(ipaddress.ip_address(text)) == is_public(v4)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_search_error(text: str) -> None:
    try:
        scheme, host, port, path = split_url(text)
    except SearchError as e:
        assert "\n" not in str(e)
        return
    assert scheme in ("http", "https")
    assert host.isascii() and path.isascii()
    assert 0 <= port < 65536
