"""Tools of a Model Context Protocol server as a search provider: a small JSON-RPC client over stdio or HTTP.

Only what a search needs of the protocol (revision 2025-06-18): initialize, tools/list, tools/call, ping. Nothing that
a server asks of us (sampling, roots, elicitation) is granted.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gog_edge._version import __version__
from gog_edge.errors import SearchError
from gog_edge.search.base import IMAGE, PAGE, TEXT, BaseProvider, Deadline, ImageQuery, Page
from gog_edge.search.web.address import AddressPolicy
from gog_edge.search.web.json_api import MAX_PAGE_CHARS, picture_slots
from gog_edge.search.web.jsonpath import pick_text
from gog_edge.search.web.results import MAX_FIELD_CHARS, hits_of
from gog_edge.search.web.template import Secrets, fill
from gog_edge.types import Hit

PROTOCOL = "2025-06-18"


class Transport(Protocol):
    """Carries JSON-RPC messages; one session at a time, created again after `reset`."""

    def exchange(self, message: Mapping[str, Any], deadline: Deadline) -> dict[str, Any] | None:
        """Send a request and wait for its response; for a notification (no id) None.

        Raises:
            SearchError: broken, closed, or not JSON-RPC.
            SearchTimeoutError: no response before the deadline.
            SessionLostError: the server forgot the session; it may be created again.
        """
        ...

    def reset(self) -> None:
        """Forget the session."""
        ...

    def close(self) -> None: ...


class SessionLostError(SearchError):
    """The session is gone (server restarted, process died)."""


class McpClient:
    """Initialises a session when it is first needed and calls tools in it. Thread-safe.

    Args:
        secrets: the keys that the transport uses. A server may echo them: whatever it says is redacted here, once.
    """

    def __init__(self, transport: Transport, secrets: Secrets | None = None) -> None:
        self._transport = transport
        self._secrets = secrets or Secrets()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._ready = False

    def tools(self, deadline: Deadline) -> list[dict[str, Any]]:
        """What the server offers: name, description, inputSchema."""
        found = self._request("tools/list", {}, deadline).get("tools")
        return [t for t in found if isinstance(t, dict)] if isinstance(found, list) else []

    def call(self, tool: str, arguments: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """The result object of a tool.

        Raises:
            SearchError: the tool reported an error, or the server did.
            SearchTimeoutError: no answer in time.
        """
        result = self._request("tools/call", {"name": tool, "arguments": dict(arguments)}, deadline)
        if result.get("isError"):
            raise SearchError(f"tool {tool!r}: {' '.join(texts_of(result).split())[:200] or 'failed'}")
        return result

    def close(self) -> None:
        self._transport.close()

    def _request(self, method: str, params: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        for again in (False, True):
            try:
                self._initialise(deadline)
                return self._send(method, params, deadline)
            except SessionLostError:
                with self._lock:
                    self._ready = False
                self._transport.reset()
                if again:
                    raise
        raise AssertionError("the second round always returns or raises")

    def _initialise(self, deadline: Deadline) -> None:
        with self._lock:
            if self._ready:
                return
            params = {
                "protocolVersion": PROTOCOL,
                "capabilities": {},
                "clientInfo": {"name": "gog-edge", "version": __version__},
            }
            self._send("initialize", params, deadline)
            self._transport.exchange({"jsonrpc": "2.0", "method": "notifications/initialized"}, deadline)
            self._ready = True

    def _send(self, method: str, params: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        message = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": dict(params)}
        try:
            response = self._secrets.redact_all(self._transport.exchange(message, deadline) or {})
        except RecursionError as e:
            raise SearchError(f"MCP server answered {method} with JSON that is nested too deeply") from e
        error = response.get("error")
        if error is not None:
            said = error.get("message") if isinstance(error, dict) else error
            raise SearchError(f"MCP server refused {method}: {' '.join(str(said).split())[:200]}")
        result = response.get("result")
        if not isinstance(result, dict):
            raise SearchError(f"MCP server answered {method} without a result")
        return result


@dataclass(frozen=True)
class ToolCall:
    """One tool: its arguments as a template (slots as in `json_api.Operation`) and where results are.

    Without `results["items"]` every text that the tool returns is one hit.
    """

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)


class McpProvider(BaseProvider):
    """Searches with tools of an MCP server. Thread-safe.

    Args:
        policy: which addresses its page tool may be sent to besides public ones. The addresses come from results, and
            the server may run inside the network that they must not reach.
    """

    def __init__(
        self,
        name: str,
        client: McpClient,
        calls: Mapping[str, ToolCall],
        *,
        secrets: Secrets | None = None,
        policy: AddressPolicy | None = None,
    ) -> None:
        self.name = name
        self.kinds = frozenset(k for k in calls if k in (TEXT, IMAGE, PAGE))
        self._client, self._calls = client, dict(calls)
        self._secrets, self._policy = secrets or Secrets(), policy or AddressPolicy()

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        call = self._calls.get(TEXT)
        if call is None:
            return super().search_text(query, k=k, deadline=deadline)
        return self._hits(call, {"query": query, "k": k}, k, deadline)

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        call = self._calls.get(IMAGE)
        if call is None:
            return super().search_image(query, k=k, deadline=deadline)
        values = {"k": k, "label": query.label, "query": query.label, **picture_slots(query, 1024)}
        if query.url and query.region is None:
            values["image_url"] = query.url
        return self._hits(call, values, k, deadline)

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        call = self._calls.get(PAGE)
        if call is None:
            return super().read_page(url, deadline=deadline, goal=goal)
        self._policy.resolve(url, deadline)
        result = self._ask(call, {"page_url": url, "goal": goal}, deadline)
        document = result.get("structuredContent")
        text = pick_text(document, call.results.get("text", "text")) if isinstance(document, dict) else ""
        text = text or texts_of(result)
        if not text.strip():
            raise SearchError(f"{self.name}: nothing could be read at {url[:120]}")
        title = pick_text(document, call.results.get("title", "title")) if isinstance(document, dict) else ""
        return Page(url, title[:MAX_FIELD_CHARS], text[:MAX_PAGE_CHARS], truncated=len(text) > MAX_PAGE_CHARS)

    def close(self) -> None:
        self._client.close()

    def _ask(self, call: ToolCall, values: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        return self._client.call(call.tool, fill(dict(call.arguments), values, self._secrets), deadline)

    def _hits(self, call: ToolCall, values: Mapping[str, Any], k: int, deadline: Deadline) -> list[Hit]:
        result = self._ask(call, values, deadline)
        if call.results:
            document = result.get("structuredContent")
            if document is None:
                try:
                    document = json.loads(texts_of(result))
                except (ValueError, RecursionError) as e:
                    raise SearchError(f"{self.name}: tool {call.tool!r} gave no JSON to take results from") from e
            return hits_of(document, call.results, k, provider=self.name)
        found = [t.strip()[:MAX_FIELD_CHARS] for t in _texts(result) if t.strip()]
        return [Hit(title=t.splitlines()[0][:200], text=t) for t in found[:k]]


def texts_of(result: Mapping[str, Any]) -> str:
    """All text contents of a tool result, one after the other."""
    return "\n".join(_texts(result))


def _texts(result: Mapping[str, Any]) -> list[str]:
    content = result.get("content")
    items = content if isinstance(content, list) else []
    return [str(c.get("text", "")) for c in items if isinstance(c, dict) and c.get("type") == "text"]
