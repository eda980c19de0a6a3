"""Search providers described as data: how a request looks, and where the results are in the JSON that comes back.

SerpAPI, Serper, Brave, SearXNG, Jina Reader and Wikipedia are such descriptions (presets/*.toml); so is anything a
user writes down. Endpoints are trusted as configured; redirects are not followed, so keys stay where they belong.
"""

from __future__ import annotations

import base64
import io
import json
import secrets as random_secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from gog_edge.errors import SearchError
from gog_edge.search.base import IMAGE, PAGE, TEXT, BaseProvider, Deadline, ImageQuery, Page
from gog_edge.search.web.address import AddressPolicy, split_url
from gog_edge.search.web.http import HttpClient, Request, Response, RetryableError
from gog_edge.search.web.jsonpath import pick_text
from gog_edge.search.web.results import MAX_FIELD_CHARS, hits_of
from gog_edge.search.web.template import Secrets, fill, slots, url_part
from gog_edge.types import Hit

UPLOAD = "upload"
MAX_PAGE_CHARS = 200_000
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_IMAGE_SLOTS = frozenset({"image_base64", "image_data_url", "image_jpeg"})


@dataclass(frozen=True)
class Operation:
    """One kind of request. Templates: see `template.fill`; slots: query, k, label, image_url, image_base64, page_url.

    `results`: "items" (where the list is) and, inside an item (for pages: inside the document), "title", "text",
    "source", "image", "score", "entity": a path such as "a.b|c" or a template such as "https://x/{key}".
    `error`: path of a message that means failure; `empty`: a part of that message that means no results.
    """

    url: str
    method: str = "GET"
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    multipart: Mapping[str, str] | None = None
    results: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    empty: str = ""


@dataclass(frozen=True)
class ApiSpec:
    """A provider: its operations by kind ("text", "image", "page", "upload") and bounds."""

    name: str
    operations: Mapping[str, Operation]
    max_bytes: int = 4 << 20
    image_side: int = 1024  # pixels of the longer side of an uploaded picture
    page_chars: int = MAX_PAGE_CHARS


class JsonApiProvider(BaseProvider):
    """Runs an `ApiSpec`. Thread-safe.

    Args:
        secrets: where keys come from; the environment by default.
    """

    def __init__(self, spec: ApiSpec, *, secrets: Secrets | None = None) -> None:
        self.spec = spec
        self.name = spec.name
        self.kinds = frozenset(k for k in spec.operations if k in (TEXT, IMAGE, PAGE))
        self._secrets = secrets or Secrets()
        policy = AddressPolicy()
        for operation in spec.operations.values():
            # The endpoint is the user's own choice, wherever it lies; what a search fills in never chooses a host.
            policy = policy.allowing(fixed_host(operation.url, spec.name))
        self._client = HttpClient(policy, redirects=0)

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        operation = self.spec.operations.get(TEXT)
        if operation is None:
            return super().search_text(query, k=k, deadline=deadline)
        return self._hits(operation, {"query": query, "k": k}, k, deadline)

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        operation = self.spec.operations.get(IMAGE)
        if operation is None:
            return super().search_image(query, k=k, deadline=deadline)
        wanted = slots([operation.url, operation.query, operation.json, operation.multipart])
        values: dict[str, Any] = {"k": k, "label": query.label, "query": query.label}
        if "image_url" in wanted:
            values["image_url"] = self._address_of(query, deadline)
        if wanted & _IMAGE_SLOTS:
            values.update(picture_slots(query, self.spec.image_side))
        return self._hits(operation, values, k, deadline)

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        operation = self.spec.operations.get(PAGE)
        if operation is None:
            return super().read_page(url, deadline=deadline, goal=goal)
        _, host, _, _ = split_url(url)
        AddressPolicy().resolve(url, deadline)  # a reader elsewhere must not be sent to this network's own hosts
        document = self._ask(operation, {"page_url": url, "goal": goal}, deadline)
        text = pick_text(document, operation.results.get("text", "text"), self._secrets.redact)
        if not text.strip():
            raise SearchError(f"{self.name}: nothing could be read at {host}")
        title = pick_text(document, operation.results.get("title", "title"), self._secrets.redact)
        address = pick_text(document, operation.results.get("source", ""), self._secrets.redact) or url
        limit = self.spec.page_chars
        return Page(address, title[:MAX_FIELD_CHARS], text[:limit], truncated=len(text) > limit)

    def close(self) -> None:
        self._client.close()

    def _address_of(self, query: ImageQuery, deadline: Deadline) -> str:
        """A public address of the picture: its own for a whole frame, else one that the upload operation gives."""
        if query.region is None and query.url:
            return query.url
        upload = self.spec.operations.get(UPLOAD)
        if upload is None:
            what = "a crop" if query.region is not None else "this picture"
            raise SearchError(f"{self.name} searches by address, and {what} has none; configure an [upload] operation")
        document = self._ask(upload, picture_slots(query, self.spec.image_side), deadline)
        address = pick_text(document, upload.results.get("source", "url"))
        split_url(address)
        return address

    def _hits(self, operation: Operation, values: Mapping[str, Any], k: int, deadline: Deadline) -> list[Hit]:
        document = self._ask(operation, values, deadline)
        return hits_of(document, operation.results, k, provider=self.name, redact=self._secrets.redact)

    def _ask(self, operation: Operation, values: Mapping[str, Any], deadline: Deadline) -> Any:
        """Send, check, parse. Messages hold the status and the server's own words, without keys."""
        try:
            request = self._request(operation, values)
        except SearchError as e:  # a variable is not set
            raise SearchError(f"{self.name}: {e}") from e
        response = self._client.send(request, deadline, max_bytes=self.spec.max_bytes)
        self._check_status(response)
        if operation.results.get("text") == "@body":
            return {"@body": response.body.decode("utf-8", "replace")}
        document = self._parse(response)
        message = pick_text(document, operation.error, self._secrets.redact) if operation.error else ""
        if message and operation.empty and operation.empty in message:
            return {}
        if message:
            raise SearchError(f"{self.name}: {' '.join(message.split())[:200]}")
        return document

    def _request(self, operation: Operation, values: Mapping[str, Any]) -> Request:
        url = str(fill(operation.url, values, self._secrets, encode=url_part))
        query = fill(dict(operation.query), values, self._secrets)
        if query:
            pairs = [(k, str(v)) for k, v in query.items()]
            url += ("&" if "?" in url else "?") + urlencode(pairs)
        headers = {k: str(v) for k, v in fill(dict(operation.headers), values, self._secrets).items()}
        headers.setdefault("Accept", "application/json")
        body: bytes | None = None
        if operation.multipart is not None:
            body, headers["Content-Type"] = multipart(fill(dict(operation.multipart), values, self._secrets))
        elif operation.json is not None:
            body = json.dumps(fill(operation.json, values, self._secrets)).encode()
            headers["Content-Type"] = "application/json"
        return Request(url, operation.method, headers, body)

    def _check_status(self, response: Response) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        if status in _RETRY_STATUS:
            raise RetryableError(f"{self.name}: HTTP {status}", retry_after(response.headers.get("retry-after", "")))
        hint = "; check its key" if status in (401, 403) else ""
        said = self._secrets.redact(" ".join(response.body[:400].decode("utf-8", "replace").split()))
        shown = f" ({said[:160]})" if said and not said.startswith("<") else ""
        raise SearchError(f"{self.name}: HTTP {status}{hint}{shown}")

    def _parse(self, response: Response) -> Any:
        kind = response.content_type
        if kind and not (kind.endswith(("/json", "+json")) or kind in ("text/plain", "text/javascript")):
            raise SearchError(f"{self.name}: answered with {kind[:60]} instead of JSON")
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError) as e:
            raise SearchError(f"{self.name}: the answer is not valid JSON") from e


def fixed_host(template: str, name: str) -> str:
    """The URL template up to its path.

    Raises:
        SearchError: there is a slot in the scheme or host.
    """
    scheme, separator, rest = template.partition("://")
    host = rest.partition("/")[0].partition("?")[0]
    if not separator or "{" in scheme + host:
        raise SearchError(f"{name}: the address {template[:80]!r} must begin with a fixed http(s)://host")
    return f"{scheme}://{host}/"


def picture_slots(query: ImageQuery, side: int) -> dict[str, str]:
    """The picture of a query as JPEG, in the forms that templates can ask for."""
    from PIL import Image

    image = Image.fromarray(query.frame.pixels)
    if query.region is not None:
        box = query.region.clamp(query.frame.width, query.frame.height)
        x0, y0 = int(box.x0), int(box.y0)
        image = image.crop((x0, y0, max(round(box.x1), x0 + 1), max(round(box.y1), y0 + 1)))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return {
        "image_base64": encoded,
        "image_data_url": f"data:image/jpeg;base64,{encoded}",
        "image_jpeg": f"@jpeg:{encoded}",
    }


def multipart(fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """A multipart/form-data body and its content type; `{image_jpeg}` values become a file part."""
    border = random_secrets.token_hex(16)
    parts: list[bytes] = []
    for name, value in fields.items():
        head = f'--{border}\r\nContent-Disposition: form-data; name="{url_part(name)}"'
        if isinstance(value, str) and value.startswith("@jpeg:"):
            raw = base64.b64decode(value[len("@jpeg:") :])
            parts.append(f'{head}; filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode() + raw)
        else:
            parts.append(f"{head}\r\n\r\n{value}".encode())
    return b"\r\n".join([*parts, f"--{border}--\r\n".encode()]), f"multipart/form-data; boundary={border}"


def retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header: a number, or an HTTP date."""
    value = value.strip()
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())
