"""What is sent to `gog-edge serve`, and what comes back; nothing of Home Assistant's."""

from __future__ import annotations

import base64
from typing import Any


def request(url: str, key: str | None, image: bytes, question: str, deadline: str | None) -> dict[str, Any]:
    """Arguments of aiohttp's `session.post`."""
    body = {"image": base64.b64encode(image).decode(), "question": question}
    if deadline:
        body["deadline"] = deadline
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"url": f"{url.rstrip('/')}/v1/ask", "json": body, "headers": headers}


def response(answer: dict[str, Any]) -> dict[str, Any]:
    """What an automation gets: the server's answer without its steps."""
    evidence = [{"title": hit["title"], "text": hit["text"]} for hit in answer["evidence"]]
    return {"text": answer["text"], "stop": answer["stop"], "seconds": answer["seconds"], "evidence": evidence}
