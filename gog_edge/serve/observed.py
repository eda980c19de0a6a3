"""Every reply is counted, and said in one line of JSON to the logger `gog_edge.access`, where somebody listens.

A line holds no header, no query string and no body: neither keys nor pictures nor questions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gog_edge.deadline import SYSTEM
from gog_edge.serve.metrics import Metrics

OUTCOME = "gog_edge.outcome"  # in the scope of a request: a function that says how its question ended
OTHER = "other"
_LONGEST_PATH = 200

access = logging.getLogger("gog_edge.access")


class ObservedMiddleware:
    """Counts replies and logs them. `paths`: those that are counted by name; others are one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent, received = SYSTEM.now(), 0, 0, 0

        async def reading() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def writing(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, reading, writing)
        finally:
            path = scope["path"]
            self.metrics.reply(path if path in self.paths else OTHER, status)
            if access.isEnabledFor(logging.INFO):
                seconds = round(SYSTEM.now() - began, 4)
                counts = {"status": status, "seconds": seconds, "received": received, "sent": sent}
                access.info("%s", _line(scope, counts))


def _line(scope: Scope, counts: dict[str, Any]) -> str:
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    client = scope.get("client")
    line = {
        "time": now,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],
        **counts,
    }
    if OUTCOME in scope:
        line["outcome"] = scope[OUTCOME]()
    return json.dumps(line)
