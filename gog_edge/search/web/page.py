"""Reading a page directly: untrusted addresses, checked hop by hop; HTML becomes text, other media are refused.

Also fetches pictures that results point at, under the same limits as the user's own.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

from gog_edge.errors import ImageError, SearchError
from gog_edge.search.base import PAGE, PICTURE, BaseProvider, Deadline, Page
from gog_edge.search.web.address import AddressPolicy, shorten
from gog_edge.search.web.extract import extract
from gog_edge.search.web.http import HttpClient, Request, Response, RetryableError
from gog_edge.search.web.json_api import MAX_PAGE_CHARS, retry_after

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame, ImageLimits

MAX_PAGE_BYTES = 4 << 20
MAX_IMAGE_BYTES = 8 << 20
_TEXT_TYPES = (
    "text/plain",
    "text/markdown",
    "text/x-markdown",
    "application/json",
    "text/csv",
    "application/xml",
    "text/xml",
)
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_\-]{2,40})", re.IGNORECASE)


class PageReader(BaseProvider):
    """Fetches pages itself. Thread-safe; no cookies, no scripts, no credentials.

    Args:
        policy: private addresses that are allowed nevertheless.
        max_bytes: of a page; what is behind is not read.
        max_chars: of the text that is handed on.
        pictures: limits of images; None: the usual ones.
    """

    name = "fetch"
    kinds = frozenset({PAGE, PICTURE})

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        *,
        max_bytes: int = MAX_PAGE_BYTES,
        max_chars: int = MAX_PAGE_CHARS,
        pictures: ImageLimits | None = None,
    ) -> None:
        # Idle connections are not kept: pages come from everywhere.
        self._client = HttpClient(policy or AddressPolicy(), keep_alive=False)
        self._max_bytes, self._max_chars, self._pictures = max_bytes, max_chars, pictures

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        request = Request(url, headers={"Accept": "text/html,text/plain;q=0.9,application/json;q=0.5"})
        response = self._client.send(request, deadline, max_bytes=self._max_bytes, truncate=True)
        _check(response)
        text = decode(response)
        kind = response.content_type or ("text/html" if "<html" in text[:2000].lower() else "text/plain")
        if kind in _HTML_TYPES:
            found = extract(text, deadline.clock)
            title, text = found.title, found.text
        elif kind in _TEXT_TYPES:
            title = ""
        else:
            raise SearchError(f"{shorten(url)}: is {kind[:60]}, which can't be read as text")
        if not text.strip():
            raise SearchError(f"{shorten(url)}: holds no readable text")
        cut = len(text) > self._max_chars or response.truncated
        return Page(response.url, title, text[: self._max_chars], truncated=cut)

    def read_image(self, url: str, *, deadline: Deadline) -> Frame:
        """A picture of a result, decoded under the limits that the reader was given, or the usual ones.

        Raises:
            SearchError: as `read_page`, or it is not an image.
        """
        from gog_edge.image.frame import DEFAULT_LIMITS, Frame

        response = self._client.send(Request(url, headers={"Accept": "image/*"}), deadline, max_bytes=MAX_IMAGE_BYTES)
        _check(response)
        if not response.content_type.startswith(("image/", "application/octet-stream")):
            raise SearchError(f"{shorten(url)}: is {response.content_type[:60] or 'untyped'}, not a picture")
        try:
            return Frame.open(response.body, name=shorten(url), limits=self._pictures or DEFAULT_LIMITS)
        except ImageError as e:
            raise SearchError(str(e)) from e

    def close(self) -> None:
        self._client.close()


def decode(response: Response) -> str:
    """The body as text: charset of the header, a byte order mark, a <meta>, else UTF-8; bad bytes are replaced."""
    body = response.body
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if body.startswith(mark):
            return body.decode(name, "replace")
    declared = re.search(r"charset\s*=\s*[\"']?([\w\-]{2,40})", response.headers.get("content-type", ""), re.IGNORECASE)
    meta = _META_CHARSET.search(body[:4096])
    charset = declared[1] if declared else meta[1].decode("ascii") if meta else "utf-8"
    try:
        codec = codecs.lookup(charset)
        # Codecs that are not character sets (base64, zip, rot13) must not be chosen by a page.
        name = codec.name if getattr(codec, "_is_text_encoding", True) else "utf-8"
    except LookupError:
        name = "utf-8"
    return body.decode(name, "replace")


def _check(response: Response) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    where = shorten(response.url)
    if status in (408, 425, 429) or status >= 500:
        raise RetryableError(f"{where}: HTTP {status}", retry_after(response.headers.get("retry-after", "")))
    raise SearchError(f"{where}: HTTP {status}")
