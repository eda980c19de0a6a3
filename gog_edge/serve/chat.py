"""OpenAI's chat completions: a request as a question, and replies whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from gog_edge.agent.request import AskRequest
from gog_edge.serde import encode
from gog_edge.serve.fields import CHAT, FieldError
from gog_edge.serve.formats import (
    MOST_TOKENS,
    Content,
    bounds_of,
    checked,
    cut_short,
    sampling_of,
    schema_of,
    stops_of,
)
from gog_edge.serve.messages import parse_messages
from gog_edge.serve.refusal import Refused, error_json
from gog_edge.serve.wire import Call, count, event_json, flag, public
from gog_edge.types import Answer, AnswerEvent, Event, TextEvent

PATH = "/v1/chat/completions"


def parse_chat(body: Any) -> Call:
    """The body of a chat completion; for its messages see `parse_messages`.

    Raises:
        UsageError: there is no image as a data URL, or no question; or something is wanted that can't be done.
    """
    body = checked(body, CHAT, "messages")
    talk = parse_messages(body.get("messages"))
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise FieldError("stream_options", "stream_options must be an object")
    try:
        usage = options is not None and flag(options, "include_usage")
    except FieldError as e:
        raise FieldError("stream_options", f"stream_options.{e}") from e
    deadline, max_turns = bounds_of(body)
    new = count(body, "max_completion_tokens", MOST_TOKENS)
    request = AskRequest(
        talk.images,
        talk.question,
        sampling=sampling_of(body),
        max_tokens=new if new is not None else count(body, "max_tokens", MOST_TOKENS),
        earlier=talk.earlier,
        system=talk.system,
        deadline=deadline,
        max_turns=max_turns,
        schema=schema_of(body.get("response_format"), "response_format", "json_schema"),
    )
    return Call(request, flag(body, "stream"), stops_of(body.get("stop")), usage, form="response_format")


class Completion:
    """The reply to one call: `whole`, or `chunks` event by event. `model`: the name of the bundle."""

    def __init__(self, call: Call, model: str) -> None:
        self._call, self._content = call, Content(call.stop)
        self._frame = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """A chat completion; evidence and steps travel in `gog_edge`."""
        message = {"role": "assistant", "content": self._content.whole(answer.text), "refusal": None}
        choice = {"index": 0, "finish_reason": self._finish(answer), "message": message, "logprobs": None}
        more = {"usage": _usage(answer), "gog_edge": public(encode(answer))}
        return {**self._frame, "object": "chat.completion", "choices": [choice], **more}

    def begin(self) -> Iterator[dict[str, Any]]:
        """What comes before the first event."""
        yield self._chunk({"role": "assistant", "content": ""})

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """Chunks for one event: pieces of the answer's text as they are written. What else happens on the way has an
        empty delta and travels in `gog_edge`."""
        if isinstance(event, TextEvent):
            if piece := self._content.add(event.text):
                yield self._chunk({"content": piece})
            return
        if not isinstance(event, AnswerEvent):
            yield self._chunk({}, gog_edge=event_json(event))
            return
        answer = event.answer
        if piece := self._content.end(answer):
            yield self._chunk({"content": piece})
        yield self._chunk({}, self._finish(answer), gog_edge=event_json(event))
        if self._call.usage:
            yield {**self._chunk({}), "choices": [], "usage": _usage(answer)}

    def failed(self, refused: Refused) -> Iterator[dict[str, Any]]:
        """What tells of a failure when the status line is long gone."""
        yield {"type": "error", **error_json(PATH, refused)}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice], **more}

    def _finish(self, answer: Answer) -> str:
        request = self._call.request
        short = cut_short(answer, self._content, request.max_tokens, request.schema is not None)
        return "length" if short else "stop"


def _usage(answer: Answer) -> dict[str, Any]:
    """Tokens as OpenAI counts them: those that were not read again, because a session or a cache had them, are part of
    the prompt. A question has a prompt for each turn of the loop; tokens are counted once."""
    usage = answer.usage
    prompt = usage.prompt_tokens + usage.reused_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": prompt + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }
