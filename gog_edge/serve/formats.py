"""What chat completions and responses have in common: sampling, lengths, the form of an answer, stop strings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gog_edge.deadline import Duration
from gog_edge.errors import UsageError
from gog_edge.sampling_options import Sampling
from gog_edge.serve.fields import Field, FieldError, check_fields
from gog_edge.serve.wire import LONGEST_DEADLINE, MOST_TURNS, count, duration, number
from gog_edge.types import Answer

LARGEST_SEED = (1 << 53) - 1  # what every JSON reader keeps exactly
MOST_TOKENS = 1 << 20
_MOST_STOPS = 16
_LARGEST_SCHEMA = 64 << 10
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def checked(body: Any, fields: Mapping[str, Field], needed: str) -> dict[str, Any]:
    """`body` as an object whose fields can be honoured. With tool_choice none, tools are offered to nobody.

    Raises:
        UsageError: it is none, or lacks the field `needed`. FieldError: see `check_fields`.
    """
    if not isinstance(body, Mapping):
        raise UsageError(f"the body must be a JSON object with {needed}")
    if body.get("tool_choice") == "none":
        body = {key: value for key, value in body.items() if key not in ("tools", "functions")}
    check_fields(body, fields)
    return dict(body)


def sampling_of(body: Mapping[str, Any]) -> Sampling | None:
    """What is said of it; None if nothing is, so that the server's own seed holds.

    Raises:
        FieldError: a value makes no sense.
    """
    said = {
        "temperature": number(body, "temperature", 2, zero=True),
        "top_p": number(body, "top_p", 1),
        "top_k": count(body, "top_k", 1 << 30, zero=True),
        "min_p": number(body, "min_p", 1, zero=True),
        "repetition_penalty": number(body, "repetition_penalty", 100),
        "seed": count(body, "seed", LARGEST_SEED, zero=True),
    }
    given = {key: value for key, value in said.items() if value is not None}
    try:
        return Sampling(**given) if given else None  # type: ignore[arg-type]  # the counts are ints
    except UsageError as e:
        raise FieldError(str(e).split()[0], str(e)) from e


def bounds_of(body: Mapping[str, Any]) -> tuple[Duration | None, int | None]:
    """(deadline, max_turns)."""
    return duration(body, "deadline", LONGEST_DEADLINE), count(body, "max_turns", MOST_TURNS)


def schema_of(form: Any, name: str, described: str = "") -> Mapping[str, Any] | None:
    """The JSON schema that an answer has to follow, from a field `name` whose kind json_schema has its schema under the
    key `described`, or beside it. None for plain text.

    Raises:
        FieldError: it is none of text, json_object and json_schema, or the schema is none or too large.
    """
    kind = form.get("type") if isinstance(form, Mapping) else None
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        raise FieldError(name, f'{name} must have the type "text", "json_object" or "json_schema"')
    holder = form.get(described) if described else form
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if not isinstance(schema, Mapping):
        raise FieldError(name, f"{name} has no schema: {described + '.' if described else ''}schema is needed")
    if len(json.dumps(schema)) > _LARGEST_SCHEMA:
        raise FieldError(name, f"{name} has a schema of more than {_LARGEST_SCHEMA >> 10} KiB")
    return schema


def stops_of(value: Any) -> tuple[str, ...]:
    """The strings that an answer ends before.

    Raises:
        FieldError: they are none.
    """
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        message = f"stop must be a string, or a list of at most {_MOST_STOPS} strings, none of them empty"
        raise FieldError("stop", message)
    return tuple(stops)


class Content:
    """What a client is shown: the answer up to the first stop string, in pieces that are never taken back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._text, self.shown = stops, "", ""

    def add(self, piece: str) -> str:
        """What can be shown now that `piece` was written."""
        self._text += piece
        sure = self.whole(self._text)
        if sure == self._text:
            sure = sure[: len(sure) - max((_overlap(sure, stop) for stop in self._stops), default=0)]
        return self._show(sure)

    def end(self, answer: Answer) -> str:
        """What is left to be shown of the answer."""
        return self._show(self.whole(answer.text))

    def whole(self, text: str) -> str:
        """`text` up to the first stop string."""
        return text[: min((at for s in self._stops if (at := text.find(s)) >= 0), default=None)]

    def _show(self, sure: str) -> str:
        piece = sure[len(self.shown) :]
        self.shown += piece
        return piece


def cut_short(answer: Answer, content: Content, most: int | None, as_json: bool) -> bool:
    """Whether a limit, and not the policy, ended the answer."""
    if not answer.text:
        return True
    if as_json:
        try:
            json.loads(answer.text)
        except ValueError:
            return True
        return False
    at_limit = most is not None and answer.usage.generated_tokens >= most
    return at_limit and content.whole(answer.text) == answer.text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
