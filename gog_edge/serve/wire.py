"""Requests and replies of the HTTP service: what a body may hold, and events as JSON."""

from __future__ import annotations

import base64
import binascii
import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NoReturn

from gog_edge.agent.request import AskRequest
from gog_edge.errors import UsageError
from gog_edge.serde import encode
from gog_edge.types import Answer, AnswerEvent, Event

LONGEST_DEADLINE = 86400.0
MOST_TURNS = 1000


def parse_json(data: bytes | bytearray) -> Any:
    """A body as JSON proper: no NaN, no number that is infinite as a float.

    Raises:
        UsageError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(data, parse_constant=_no_number, parse_float=_finite)
    except UsageError:
        raise
    except ValueError as e:
        raise UsageError(f"the body is not JSON: {e}") from e
    except RecursionError as e:
        raise UsageError("the body is nested too deeply") from e


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
        raise UsageError(f"unknown field {min(unknown)!r}")
    question = body.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UsageError("question is missing or empty")
    image, stream = decode_image(body.get("image")), _flag(body, "stream")
    deadline = _number(body, "deadline", LONGEST_DEADLINE)
    turns = _number(body, "max_turns", MOST_TURNS)
    if turns is not None and turns != int(turns):
        raise UsageError("max_turns must be a whole number")
    max_turns = None if turns is None else int(turns)
    return AskRequest(image, _text(question, "question"), deadline=deadline, max_turns=max_turns), stream


def parse_chat(body: Any) -> tuple[AskRequest, bool]:
    """The body of an OpenAI-style chat completion with one image and one question in its last user message; what comes
    back is as of `parse_ask`.

    Raises:
        UsageError: there is no image as a data URL, or no text, or more than one choice is wanted.
    """
    messages = body.get("messages") if isinstance(body, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise UsageError("messages is missing or empty: a list of messages is needed")
    if (choices := body.get("n")) is not None and (isinstance(choices, bool) or choices != 1):
        raise UsageError("n must be 1: there is one answer to a question")
    users = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    parts = users[-1].get("content") if users else None
    if not isinstance(parts, list):
        raise UsageError("the content of the last user message must be a list of an image_url part and a text part")
    texts, images = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(_text(part["text"], "text"))
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(url.get("url") if isinstance(url, Mapping) else url)
        else:
            raise UsageError(f"a content part of type {kind!r} is not understood")
    if len(images) != 1 or not texts:
        raise UsageError(f"one image and a question are needed, not {len(images)} images and {len(texts)} texts")
    return AskRequest(decode_image(images[0]), "\n".join(texts)), _flag(body, "stream")


def decode_image(value: Any) -> bytes:
    """Base64, with or without line ends and a data: prefix. Addresses are not fetched: the service reads nothing by
    itself.

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
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as e:
        raise UsageError(f"image is not base64: {e}") from e


def event_json(event: Event) -> dict[str, Any]:
    """{"type": "token" | "action" | "box" | "observation" | "answer", …fields}."""
    name = type(event).__name__.removesuffix("Event").lower()
    if isinstance(event, AnswerEvent):
        return {"type": name, **_public(encode(event.answer))}
    return {"type": name, **_public(encode(event))}


def models_json(model: str, since: int) -> dict[str, Any]:
    """The list of GET /v1/models: the bundle that is served. `since`: when it was loaded, in seconds of Unix time."""
    return {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": since, "owned_by": "gog-edge"}],
    }


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
        "gog_edge": _public(encode(answer)),
    }


def _public(value: Any) -> Any:
    """Encoded events without paths of this machine: the picture of a hit is an address, or a file's bare name."""
    if isinstance(value, list):
        return [_public(v) for v in value]
    if not isinstance(value, dict):
        return value
    shown = {k: _public(v) for k, v in value.items()}
    for key in ("image", "source"):
        if isinstance(place := shown.get(key), str) and PurePath(place).is_absolute():
            shown[key] = PurePath(place).name
    return shown


def _number(body: Mapping[str, Any], key: str, most: float) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"{key} must be a positive number")
    if value > most:  # an int of 400 digits is compared, never converted
        raise UsageError(f"{key} must be at most {most:g}")
    return float(value)


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{key} must be true or false")
    return value is True


def _text(value: str, key: str) -> str:
    """JSON can spell half of a surrogate pair, which is no text."""
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"{key} holds half of a surrogate pair: that is not Unicode text") from e
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise UsageError(f"the body holds a number that is too large: {digits[:20]}")
    return value


def _no_number(name: str) -> NoReturn:
    raise UsageError(f"the body is not JSON: {name} is no JSON number")
