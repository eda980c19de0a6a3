"""Requests and replies of the HTTP service: what a body may hold, and events as JSON."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from gog_edge.agent.request import AskRequest
from gog_edge.errors import UsageError
from gog_edge.serde import encode
from gog_edge.types import Answer, AnswerEvent, Event


def parse_ask(body: Any) -> tuple[AskRequest, bool]:
    """The body of POST /v1/ask, {"image": base64 or data URL, "question", "deadline"?, "max_turns"?, "stream"?}: the
    request, and whether its events are wanted.

    Raises:
        UsageError: a field is missing, unknown or of another type.
    """
    if not isinstance(body, Mapping):
        raise UsageError("the body must be a JSON object with image and question")
    unknown = set(body) - {"image", "question", "deadline", "max_turns", "stream"}
    if unknown:
        raise UsageError(f"unknown field {sorted(unknown)[0]!r}")
    question = body.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UsageError("question is missing or empty")
    image, deadline, max_turns = decode_image(body.get("image")), _number(body, "deadline"), _count(body, "max_turns")
    return AskRequest(image, question, deadline=deadline, max_turns=max_turns), body.get("stream") is True


def parse_chat(body: Any) -> tuple[AskRequest, bool]:
    """The body of an OpenAI-style chat completion with one image and one question in its last user message; what comes
    back is as of `parse_ask`.

    Raises:
        UsageError: there is no image as a data URL, or no text.
    """
    messages = body.get("messages") if isinstance(body, Mapping) else None
    if not isinstance(messages, Sequence) or not messages:
        raise UsageError("messages is missing or empty")
    users = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    parts = users[-1].get("content") if users else None
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        raise UsageError("the last user message must be a list of an image_url part and a text part")
    texts, images = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(url.get("url") if isinstance(url, Mapping) else url)
        else:
            raise UsageError(f"a content part of type {kind!r} is not understood")
    if len(images) != 1 or not texts:
        raise UsageError(f"one image and a question are needed, not {len(images)} images and {len(texts)} texts")
    return AskRequest(decode_image(images[0]), "\n".join(texts)), body.get("stream") is True


def decode_image(value: Any) -> bytes:
    """Base64, with or without a data: prefix. Addresses are not fetched: the service reads nothing by itself.

    Raises:
        UsageError: missing, an address, or not base64.
    """
    if not isinstance(value, str) or not value:
        raise UsageError("image is missing: send the file base64-encoded, or as a data: URL")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    elif "://" in value[:16]:
        raise UsageError("image addresses are not fetched: send the file base64-encoded, or as a data: URL")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as e:
        raise UsageError(f"image is not base64: {e}") from e


def event_json(event: Event) -> dict[str, Any]:
    """{"type": "token" | "action" | "box" | "observation" | "answer", …fields}."""
    name = type(event).__name__.removesuffix("Event").lower()
    if isinstance(event, AnswerEvent):
        return {"type": name, **encode(event.answer)}
    return {"type": name, **encode(event)}


def chat_json(answer: Answer, model: str) -> dict[str, Any]:
    """The answer as an OpenAI-style chat completion; evidence and steps travel in `gog_edge`."""
    usage = answer.usage
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop" if answer.text else "length",
                "message": {"role": "assistant", "content": answer.text},
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        },
        "gog_edge": encode(answer),
    }


def _number(body: Mapping[str, Any], key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"{key} must be a positive number")
    return float(value)


def _count(body: Mapping[str, Any], key: str) -> int | None:
    value = _number(body, key)
    if value is not None and value != int(value):
        raise UsageError(f"{key} must be a whole number")
    return None if value is None else int(value)
