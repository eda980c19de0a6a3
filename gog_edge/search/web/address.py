"""Which addresses may be contacted. The check is made on the resolved address, and that address is then dialled.

A page that a search result names, or that a redirect leads to, is untrusted: it must be http(s) on a usual port and
resolve to public addresses only. What the user configured (an endpoint, an allow-list entry) is trusted as typed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from dataclasses import dataclass
from typing import Any, Union
from urllib.parse import quote, urlsplit

from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.search.base import Deadline

_IP = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
MAX_URL = 4096
MAX_ADDRESSES = 3
USUAL_PORTS = frozenset({80, 443, 8080, 8443})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Target:
    """A checked URL: where to connect (`addresses`, in turn) and what to say there (`host`, `path`)."""

    url: str
    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def host_header(self) -> str:
        default = 443 if self.scheme == "https" else 80
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default else f"{host}:{self.port}"


@dataclass(frozen=True)
class AddressPolicy:
    """What may be contacted besides public addresses.

    `allowed`: "host:port" entries that are trusted as they are (a local SearXNG, a test server).
    """

    allowed: frozenset[str] = frozenset()

    def allowing(self, url: str) -> AddressPolicy:
        """This policy plus the host and port of a URL that the user configured.

        Raises:
            SearchError: it is not an http(s) URL.
        """
        _, host, port, _ = split_url(url)
        return AddressPolicy(self.allowed | {f"{host}:{port}"})

    def resolve(self, url: str, deadline: Deadline) -> Target:
        """Check a URL and look up the addresses to dial.

        Raises:
            SearchError: not http(s), credentials in it, an unusual port, no such host, or a private address.
            SearchTimeoutError: the name server did not answer in time.
        """
        scheme, host, port, path = split_url(url)
        trusted = f"{host}:{port}" in self.allowed
        if not trusted and port not in USUAL_PORTS:
            raise SearchError(f"refused to contact {host}:{port}: not a usual web port")
        found = _lookup(host, port, deadline)
        if not trusted:
            for address in found:
                if not is_public(address):
                    raise SearchError(
                        f"refused to contact {host}: it resolves to {address}, which is not a public address"
                    )
        return Target(url, scheme, host, port, path, tuple(map(str, found[:MAX_ADDRESSES])))


def split_url(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query), everything ASCII.

    Raises:
        SearchError: not an http(s) URL that can be requested safely.
    """
    shown = shorten(url)
    if len(url) > MAX_URL or any(c.isspace() or ord(c) < 32 or ord(c) == 127 for c in url):
        raise SearchError(f"refused the address {shown!r}: too long, or it holds spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        # IDNA: what is looked up is what is checked.
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as e:
        raise SearchError(f"refused the address {shown!r}: not a valid URL") from e
    if parts.scheme not in ("http", "https"):
        raise SearchError(f"refused the address {shown!r}: only http and https are read")
    if not host or "@" in parts.netloc:
        raise SearchError(f"refused the address {shown!r}: no host, or credentials in it")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host.lower(), port or (443 if parts.scheme == "https" else 80), quote_ascii(path)


def is_public(address: _IP) -> bool:
    """Whether an address is a public unicast one, looking through IPv6 forms that carry an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def shorten(url: str) -> str:
    """A URL for messages: without query (keys live there) and bounded."""
    return "".join(c for c in url.partition("?")[0] if c.isprintable())[:120]


def quote_ascii(path: str) -> str:
    """Non-ASCII characters percent-encoded; what is encoded already stays."""
    return quote(path, safe="%/:?#[]@!$&'()*+,;=-._~")


def _lookup(host: str, port: int, deadline: Deadline) -> list[_IP]:
    """Addresses of a host. getaddrinfo knows no time-out, so it waits in a thread of its own."""
    with contextlib.suppress(ValueError):
        return [ipaddress.ip_address(host)]
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as e:
            answer.append(e)

    thread = threading.Thread(target=ask, name="gog-edge-dns", daemon=True)
    thread.start()
    thread.join(deadline.timeout())
    if not answer:
        raise SearchTimeoutError(f"{host}: the name server did not answer in time")
    if isinstance(answer[0], Exception):
        raise SearchError(f"{host}: no such host") from answer[0]
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in answer[0]]
    # IPv4 first: a host without a route for IPv6 would cost a connect time-out.
    return sorted(dict.fromkeys(addresses), key=lambda a: a.version)
