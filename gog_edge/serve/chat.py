"""OpenAI's chat completions: what is understood of a request, what is refused, and replies whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from gog_edge.agent.request import AskRequest
from gog_edge.errors import UsageError
from gog_edge.sampling_options import Sampling
from gog_edge.serde import encode
from gog_edge.serve.messages import parse_messages
from gog_edge.serve.wire import Call, count, event_json, flag, number, public
from gog_edge.types import Answer, AnswerEvent, Event

_MOST_TOKENS = 1 << 20
_LARGEST_SEED = (1 << 53) - 1  # what every JSON reader keeps exactly
_MOST_STOPS = 16


def parse_chat(body: Any) -> Call:
    """The body of a chat completion; for its messages see `parse_messages`.

    Raises:
        UsageError: there is no image as a data URL, or no question; or something is wanted that can't be done.
    """
    talk = parse_messages(body.get("messages") if isinstance(body, Mapping) else None)
    _refuse(body)
    options = body.get("stream_options")
    request = AskRequest(
        talk.images,
        talk.question,
        sampling=_sampling(body),
        max_tokens=_most_tokens(body),
        earlier=talk.earlier,
        system=talk.system,
    )
    usage = isinstance(options, Mapping) and flag(options, "include_usage")
    return Call(request, flag(body, "stream"), _stops(body.get("stop")), usage)


def _refuse(body: Mapping[str, Any]) -> None:
    """What would change the answer, and can't be honoured, is not ignored."""
    if (choices := body.get("n")) is not None and (isinstance(choices, bool) or choices != 1):
        raise UsageError("n must be 1: there is one answer to a question")
    for key in ("tools", "functions", "logprobs"):
        if body.get(key):
            raise UsageError(f"{key} can't be given here: the policy has tools of its own")
    form = body.get("response_format")
    if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
        raise UsageError('response_format must be {"type": "text"}: answers are plain text')


def _sampling(body: Mapping[str, Any]) -> Sampling | None:
    """What is said of it; None if nothing is, so that the server's own seed holds."""
    said = {
        "temperature": number(body, "temperature", 2, zero=True),
        "top_p": number(body, "top_p", 1),
        "seed": count(body, "seed", _LARGEST_SEED, zero=True),
    }
    given = {key: value for key, value in said.items() if value is not None}
    return Sampling(**given) if given else None  # type: ignore[arg-type]  # the seed is an int


def _most_tokens(body: Mapping[str, Any]) -> int | None:
    """Under its new name, or the old one."""
    new = count(body, "max_completion_tokens", _MOST_TOKENS)
    return new if new is not None else count(body, "max_tokens", _MOST_TOKENS)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise UsageError(f"stop must be a string, or a list of at most {_MOST_STOPS} strings, none of them empty")
    return tuple(stops)


class Completion:
    """The reply to one call: `whole`, or `chunks` event by event. `model`: the name of the bundle."""

    def __init__(self, call: Call, model: str) -> None:
        self._call = call
        self._frame = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """A chat completion; evidence and steps travel in `gog_edge`."""
        message = {"role": "assistant", "content": self._content(answer)}
        choice = {"index": 0, "finish_reason": _finish(answer), "message": message}
        more = {"usage": _usage(answer), "gog_edge": public(encode(answer))}
        return {**self._frame, "object": "chat.completion", "choices": [choice], **more}

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """Chunks for one event. What happens on the way has an empty delta and travels in `gog_edge`; the text comes
        with the answer, because what a policy writes before it is thought and calls."""
        if not isinstance(event, AnswerEvent):
            yield self._chunk({}, gog_edge=event_json(event))
            return
        answer = event.answer
        yield self._chunk({"role": "assistant", "content": self._content(answer)})
        yield self._chunk({}, _finish(answer), gog_edge=event_json(event))
        if self._call.usage:
            yield {**self._chunk({}), "choices": [], "usage": _usage(answer)}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice], **more}

    def _content(self, answer: Answer) -> str:
        """The answer up to the first stop string."""
        return answer.text[: min((at for s in self._call.stop if (at := answer.text.find(s)) >= 0), default=None)]


def _finish(answer: Answer) -> str:
    return "stop" if answer.text else "length"


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
