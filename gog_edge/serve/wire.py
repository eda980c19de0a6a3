"""Requests and replies of the HTTP service: what a body may hold, and events as JSON."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NoReturn

from gog_edge.agent.request import AskRequest
from gog_edge.deadline import seconds_of
from gog_edge.errors import UsageError
from gog_edge.serde import encode
from gog_edge.serve.fields import ASK, FieldError, check_fields
from gog_edge.serve.refusal import ASK as PATH
from gog_edge.serve.refusal import Refused, error_json
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


@dataclass(frozen=True)
class Call:
    """What a body asks for. `stream`: events are wanted. `stop`: the answer ends before the first of these. `usage`: a
    stream ends with it. `form`: the field that said what form the answer has. `echoed`: what the reply repeats."""

    request: AskRequest
    stream: bool
    stop: tuple[str, ...] = ()
    usage: bool = False
    form: str = ""
    echoed: Mapping[str, Any] = field(default_factory=dict)


def parse_ask(body: Any) -> Call:
    """The body of POST /v1/ask, {"image": base64 or data URL, "question", "deadline"?, "max_turns"?, "stream"?}.

    Raises:
        UsageError: a field is missing, unknown or of another type.
    """
    if not isinstance(body, Mapping):
        raise UsageError("the body must be a JSON object with image and question")
    check_fields(body, ASK)
    question = body.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UsageError("question is missing or empty")
    image, stream = decode_image(body.get("image")), flag(body, "stream")
    deadline, max_turns = duration(body, "deadline", LONGEST_DEADLINE), count(body, "max_turns", MOST_TURNS)
    return Call(AskRequest(image, unicode_text(question, "question"), deadline=deadline, max_turns=max_turns), stream)


def duration(body: Mapping[str, Any], name: str, most: float) -> float | None:
    """A number of seconds, or a text like "2s"; None where it is missing or null.

    Raises:
        UsageError: it is neither, or not above 0 and at most `most`.
    """
    value = body.get(name)
    try:
        return number({name: seconds_of(value, name)} if isinstance(value, str) else body, name, most)
    except UsageError as e:
        raise FieldError(name, str(e)) from e


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
    """{"type": "notice" | "token" | "text" | "action" | "box" | "observation" | "answer", …fields}."""
    name = type(event).__name__.removesuffix("Event").lower()
    if isinstance(event, AnswerEvent):
        return {"type": name, **public(encode(event.answer))}
    return {"type": name, **public(encode(event))}


class Events:
    """The reply of POST /v1/ask: events as they are."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        return event_json(AnswerEvent(answer))

    def begin(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        yield event_json(event)

    def failed(self, refused: Refused) -> Iterator[dict[str, Any]]:
        yield {"type": "error", **error_json(PATH, refused)}


def sse(chunk: Mapping[str, Any]) -> str:
    """A chunk as a server-sent event; those of responses are named."""
    named = f"event: {chunk['type']}\n" if "sequence_number" in chunk else ""
    return f"{named}data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def models_json(model: str, since: int) -> dict[str, Any]:
    """The list of GET /v1/models: the bundle that is served. `since`: when it was loaded, in seconds of Unix time."""
    return {"object": "list", "data": [model_json(model, since)]}


def model_json(model: str, since: int) -> dict[str, Any]:
    """The reply of GET /v1/models/NAME."""
    return {"id": model, "object": "model", "created": since, "owned_by": "gog-edge"}


def public(value: Any) -> Any:
    """Encoded events without paths of this machine: the picture of a hit is an address, or a file's bare name."""
    if isinstance(value, list):
        return [public(v) for v in value]
    if not isinstance(value, dict):
        return value
    shown = {k: public(v) for k, v in value.items()}
    for key in ("image", "source"):
        if isinstance(place := shown.get(key), str) and PurePath(place).is_absolute():
            shown[key] = PurePath(place).name
    return shown


def number(body: Mapping[str, Any], key: str, most: float, *, zero: bool = False) -> float | None:
    """A number above 0 (or from 0 on) up to `most`; None if there is none.

    Raises:
        UsageError: something else.
    """
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 or (zero and value == 0)):
        raise FieldError(key, f"{key} must be a {'number of at least 0' if zero else 'positive number'}")
    if value > most:  # an int of 400 digits is compared, never converted
        raise FieldError(key, f"{key} must be at most {most:g}")
    return float(value)


def count(body: Mapping[str, Any], key: str, most: int, *, zero: bool = False) -> int | None:
    """`number`, whole.

    Raises:
        UsageError: something else.
    """
    value = number(body, key, most, zero=zero)
    if value is not None and value != int(value):
        raise FieldError(key, f"{key} must be a whole number")
    return None if value is None else int(body[key])


def flag(body: Mapping[str, Any], key: str) -> bool:
    """true or false; false if there is none.

    Raises:
        UsageError: something else.
    """
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise FieldError(key, f"{key} must be true or false")
    return value is True


def unicode_text(value: str, key: str) -> str:
    """`value`: JSON can spell half of a surrogate pair, which is no text.

    Raises:
        UsageError: it holds one.
    """
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise FieldError(key, f"{key} holds half of a surrogate pair: that is not Unicode text") from e
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise UsageError(f"the body holds a number that is too large: {digits[:20]}")
    return value


def _no_number(name: str) -> NoReturn:
    raise UsageError(f"the body is not JSON: {name} is no JSON number")
