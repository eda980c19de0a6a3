"""Messages of an MCP server that lies, over a real pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from gog_edge.errors import SearchError
from gog_edge.search.base import Deadline
from gog_edge.search.web.mcp import McpClient, McpProvider, ToolCall
from gog_edge.search.web.mcp_transport import StdioTransport
from gog_edge.types import Hit
from tests.faults.harness.core import Area, Attempt, Wrong, one_line
from tests.tools import ROOT

_ROWS = {"items": "rows", "title": "t", "source": "u", "score": "n"}
_CALL = ToolCall("search", {"q": "{query}", "n": "{k}"}, _ROWS)
_WAIT_S = 0.3  # an answer that never comes
_LONGEST_S = 30.0


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    command = [sys.executable, "-m", "tests.faults.harness.liar"]
    client = McpClient(StdioTransport(command, {"PYTHONPATH": str(ROOT)}))
    providers = [McpProvider("liar", client, {"text": c}) for c in (_CALL, ToolCall("search", _CALL.arguments))]
    for provider in providers:
        provider.search_text("honest", k=3, deadline=Deadline.after(_LONGEST_S))

    def attempt(rng: Random, number: int) -> str:
        provider = providers[number % 2]
        try:
            hits = provider.search_text(f"{seed}:{number}", k=3, deadline=Deadline.after(_WAIT_S))
            ended = "results"
            if not all(isinstance(h, Hit) and isinstance(h.title, str) and isinstance(h.text, str) for h in hits):
                raise Wrong(f"results of other types: {hits!r}"[:300])
        except SearchError as e:
            ended = one_line(e)
        good = provider.search_text("honest", k=3, deadline=Deadline.after(_LONGEST_S))
        if not good or "about honest" not in good[0].title + good[0].text:
            raise Wrong(f"the next search is answered {good!r}"[:300])
        return ended

    yield attempt
    client.close()


AREA = Area("mcp", "results or one line; the next search is answered", _open, longest_s=90)
