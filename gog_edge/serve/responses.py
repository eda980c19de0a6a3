"""OpenAI's responses: a request as a question, and replies whole or as events. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from gog_edge.agent.request import AskRequest
from gog_edge.serde import encode
from gog_edge.serve.fields import RESPONSES, FieldError
from gog_edge.serve.formats import MOST_TOKENS, Content, bounds_of, checked, cut_short, sampling_of, schema_of
from gog_edge.serve.messages import parse_messages
from gog_edge.serve.refusal import Refused
from gog_edge.serve.wire import Call, count, flag, public
from gog_edge.types import Answer, AnswerEvent, Event, TextEvent

PATH = "/v1/responses"
_ECHOED = ("instructions", "temperature", "top_p", "text", "metadata")
_TEXTS = ("input_text", "output_text", "text")


def parse_responses(body: Any) -> Call:
    """The body of a response.

    Raises:
        UsageError: there is no image as a data URL, or no question; or something is wanted that can't be done.
    """
    body = checked(body, RESPONSES, "input")
    text = body.get("text")
    if text is not None and not isinstance(text, Mapping):
        raise FieldError("text", "text must be an object with format")
    if text is not None and text.get("verbosity") not in (None, "medium"):
        message = "text.verbosity can't be given here: say in the question how long the answer may be"
        raise FieldError("text", message, "unsupported_parameter")
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise FieldError("instructions", "instructions must be a text")
    talk = parse_messages(_messages(body.get("input"), instructions), "input")
    deadline, max_turns = bounds_of(body)
    request = AskRequest(
        talk.images,
        talk.question,
        sampling=sampling_of(body),
        max_tokens=count(body, "max_output_tokens", MOST_TOKENS),
        earlier=talk.earlier,
        system=talk.system,
        deadline=deadline,
        max_turns=max_turns,
        schema=schema_of((text or {}).get("format"), "text.format"),
    )
    echoed = {key: body[key] for key in _ECHOED if body.get(key) is not None}
    return Call(request, flag(body, "stream"), form="text.format", echoed=echoed)


def _messages(value: Any, instructions: str | None) -> Any:
    """`input` as messages of a chat completion."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    first = [{"role": "system", "content": instructions}] if instructions else []
    return [*first, *map(_message, value)]


def _message(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    if (kind := item.get("type", "message")) != "message":
        raise FieldError("input", f"an input item of type {str(kind)[:60]!r} is not understood: only messages are")
    content = item.get("content")
    return {**item, "content": list(map(_part, content)) if isinstance(content, list) else content}


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image":
        if part.get("file_id") is not None:
            raise FieldError("input", "input_image.file_id can't be given here: send the picture as a data: URL")
        return {"type": "image_url", "image_url": part.get("image_url")}
    return part


class Reply:
    """The reply to one call: `whole`, or `chunks` event by event. `model`: the name of the bundle."""

    def __init__(self, call: Call, model: str) -> None:
        self._call, self._content, self._number = call, Content(()), 0
        self._item = f"msg_{uuid.uuid4().hex}"
        self._frame = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": call.request.max_tokens,
            "metadata": {},
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            "usage": None,
            **call.echoed,
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        """A response; evidence and steps travel in `gog_edge`."""
        request = self._call.request
        short = cut_short(answer, self._content, request.max_tokens, request.schema is not None)
        status = "incomplete" if short else "completed"
        ended = {"output": [self._message(status, answer.text)], "usage": _usage(answer)}
        details = {"reason": "max_output_tokens"} if short else None
        return {**self._state(status), **ended, "incomplete_details": details, "gog_edge": public(encode(answer))}

    def begin(self) -> Iterator[dict[str, Any]]:
        """What comes before the first event."""
        yield self._event("response.created", response=self._state("in_progress"))
        yield self._event("response.in_progress", response=self._state("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", None))
        yield self._event("response.content_part.added", **self._place, part=_text_part(""))

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """Events for one event: pieces of the answer's text, and its end."""
        if isinstance(event, TextEvent):
            yield from self._delta(self._content.add(event.text))
        if not isinstance(event, AnswerEvent):
            return
        answer = event.answer
        yield from self._delta(self._content.end(answer))
        yield self._event("response.output_text.done", **self._place, text=answer.text, logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=_text_part(answer.text))
        whole = self.whole(answer)
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, refused: Refused) -> Iterator[dict[str, Any]]:
        """What tells of a failure when the status line is long gone."""
        error = {"code": "server_error" if refused.status >= 500 else "invalid_prompt", "message": str(refused)}
        yield self._event("response.failed", response={**self._state("failed"), "error": error})

    def _delta(self, piece: str) -> Iterator[dict[str, Any]]:
        if piece:
            yield self._event("response.output_text.delta", **self._place, delta=piece, logprobs=[])

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _state(self, status: str) -> dict[str, Any]:
        return {**self._frame, "status": status}

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_text_part(text)]
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    """As of chat completions, under other names."""
    usage = answer.usage
    prompt = usage.prompt_tokens + usage.reused_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": usage.reused_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + usage.generated_tokens,
    }
