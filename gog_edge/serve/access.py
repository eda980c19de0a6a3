"""Who may ask: the Host header against DNS rebinding, the Origin header against other people's pages, and a key.

A page that a user of this machine looks at can send requests here. The browser says where the page came from
(Origin), and under which name it reached us (Host). A name that we were not told of may have been pointed at this
machine by whoever owns it, so only addresses, `localhost` and named hosts are accepted.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gog_edge.serve.page import PAGE
from gog_edge.serve.refusal import Refused, refusal

ANY = "*"
HEALTH = "/healthz"
MANUAL, DESCRIPTION = "/docs", "/openapi.json"
OPEN = {HEALTH, MANUAL, DESCRIPTION, *PAGE}  # without the key: they say nothing of anybody's questions


class AccessMiddleware:
    """Refuses what comes under a foreign name, from a foreign page, or without the key.

    Args:
        hosts: names that are accepted besides addresses and localhost; "*" accepts all.
        origins: origins of pages that may ask, as browsers write them; "*" accepts all.
        key: what `Authorization: Bearer KEY` must hold; None asks for nothing. `OPEN` needs none.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str], key: str | None) -> None:
        self.app, self.key = app, key
        self.hosts = {host.lower() for host in hosts}
        self.origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except Refused as e:
                await refusal(scope["path"], e)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        if ANY not in self.hosts and not _is_safe(name := host_name(host)) and name not in self.hosts:
            raise Refused(403, "this host name is not served here: start the server with --allow-host NAME")
        origin = headers.get("origin", "").lower()
        same = host != "" and origin.partition("://")[2] == host
        if origin and not same and not self.origins & {origin, ANY}:
            raise Refused(403, "pages of this origin may not ask: start the server with --allow-origin ORIGIN")
        if self.key is not None and path not in OPEN:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode("utf-8"), f"Bearer {self.key}".encode()):
                raise Refused(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; "" if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_safe(name: str) -> bool:
    """Names that nobody can point elsewhere: localhost, and addresses themselves."""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
