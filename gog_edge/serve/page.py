"""The page at `/`: three files of this package, which load nothing from elsewhere, and may not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

# path -> (file, type); anybody may read them without a key: there is nothing in them
PAGE: Mapping[str, tuple[str, str]] = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def page(request: Request) -> Response:
    """The file of the path that was asked for."""
    name, kind = PAGE[request.url.path]
    return Response(_read(name), media_type=f"{kind}; charset=utf-8", headers=PAGE_HEADERS)


@lru_cache(maxsize=len(PAGE))
def _read(name: str) -> bytes:
    return files("gog_edge.serve").joinpath("static", name).read_bytes()
