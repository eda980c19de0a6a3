"""Every field that a request may hold: what is done with it, and why. docs/server.md shows these tables.

What would change the answer, and can't be honoured, is refused instead of ignored; so is what we do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gog_edge.errors import UsageError


class FieldError(UsageError):
    """A field of a request that can't be used.

    Args:
        param: its name.
        code: OpenAI's word for the kind of fault.
    """

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Field:
    """What is done with one field. `why`: in a table, and behind "NAME can't be given here: " where it is refused.
    `harmless`: values of a refused field that ask for nothing, besides null."""

    how: Literal["honoured", "refused", "ignored"]
    why: str
    harmless: tuple[Any, ...] = ()


def check_fields(body: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Refuse what can't be honoured.

    Raises:
        FieldError: a field is unknown, or asks for what is refused.
    """
    for name, value in body.items():
        field = fields.get(name)
        if field is None:
            raise FieldError(
                name[:60], f"there is no field {name[:60]!r} here: docs/server.md lists them", "unknown_parameter"
            )
        if field.how == "refused" and value is not None and not _harmless(value, field.harmless):
            raise FieldError(name, f"{name} can't be given here: {field.why}", "unsupported_parameter")


def _harmless(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Equal and of the same kind: true is not 1."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless)


_TOOLS = (
    "the policy calls tools that it was trained on, and none of the client's; searches are set up with "
    'gog-edge serve --search. Leave it out, or send tool_choice "none"'
)
_SAMPLING = {
    "temperature": Field("honoured", "0 to 2; 0 is the likeliest token. For calls and boxes, too: it may cost answers"),
    "top_p": Field("honoured", "above 0, at most 1; for calls and boxes, too"),
}
_OURS = {
    "deadline": Field("honoured", 'ours: seconds, or a text such as "2s"; then the best answer so far'),
    "max_turns": Field("honoured", "ours: rounds before the policy is made to answer"),
    "top_k": Field("honoured", "vLLM's: the k likeliest tokens; 0 is all"),
    "min_p": Field("honoured", "vLLM's: from 0 to below 1"),
    "repetition_penalty": Field("honoured", "vLLM's: above 0, below 100; 1 is none"),
}
_NEUTRAL = {
    "model": Field("ignored", "there is one"),
    "user": Field("ignored", "nobody is told apart"),
    "safety_identifier": Field("ignored", "nobody is told apart"),
    "metadata": Field("ignored", "nothing is stored"),
    "store": Field("ignored", "nothing is stored"),
    "service_tier": Field("ignored", "there is one"),
    "prompt_cache_key": Field("ignored", "a conversation is found by its pictures and words"),
    "prompt_cache_options": Field("ignored", "a conversation is found by its pictures and words"),
    "prompt_cache_retention": Field("ignored", "--sessions says how many are kept"),
    "parallel_tool_calls": Field("ignored", "the dialect says how many calls a turn may have"),
}

ASK: Mapping[str, Field] = {
    "image": Field("honoured", "a file: base64, with or without line ends, or a data: URL"),
    "question": Field("honoured", "what is asked about it"),
    "deadline": _OURS["deadline"],
    "max_turns": _OURS["max_turns"],
    "stream": Field("honoured", "every event as it happens"),
}

CHAT: Mapping[str, Field] = {
    "messages": Field("honoured", "text and 1 to 16 pictures; the last one is the user's question"),
    "stream": Field("honoured", "the answer's text in pieces, as it is written"),
    "stream_options": Field("honoured", "include_usage; include_obfuscation does nothing"),
    "max_completion_tokens": Field("honoured", "written in the whole question, calls included"),
    "max_tokens": Field("honoured", "the same under its old name; the new one comes first"),
    **_SAMPLING,
    "seed": Field("honoured", "a whole number from 0 to 2^53 - 1"),
    "stop": Field("honoured", "one string or up to 16; the answer ends before the first of them"),
    "response_format": Field("honoured", "text, json_object, json_schema; needs the extra grammar"),
    **_OURS,
    **_NEUTRAL,
    "prediction": Field("ignored", "it is about speed; what repeats is guessed here without it"),
    "n": Field("refused", "there is one answer to a question, so n must be 1", (1,)),
    "tools": Field("refused", _TOOLS, ([],)),
    "tool_choice": Field(
        "refused", "the client's tools are not called: only none and auto can be met", ("none", "auto")
    ),
    "functions": Field("refused", _TOOLS, ([],)),
    "function_call": Field("refused", "the client's functions are not called", ("none", "auto")),
    "logprobs": Field("refused", "log probabilities are not kept", (False,)),
    "top_logprobs": Field("refused", "log probabilities are not kept", (0,)),
    "logit_bias": Field("refused", "tokens can't be biased", ({},)),
    "presence_penalty": Field("refused", "use repetition_penalty", (0,)),
    "frequency_penalty": Field("refused", "use repetition_penalty", (0,)),
    "reasoning_effort": Field("refused", "the policy reasons as it was trained to; max_turns and deadline bound it"),
    "verbosity": Field("refused", "say in the question how long the answer may be", ("medium",)),
    "modalities": Field("refused", "answers are text", (["text"],)),
    "audio": Field("refused", "answers are text"),
    "web_search_options": Field("refused", "searches are set up with gog-edge serve --search"),
    "moderation": Field("refused", "nothing is moderated here"),
}

RESPONSES: Mapping[str, Field] = {
    "input": Field(
        "honoured", "a list of messages with text and 1 to 16 pictures; the last one is the user's question"
    ),
    "instructions": Field("honoured", "put after the dialect's own system text"),
    "stream": Field("honoured", "response.* events; the answer's text in pieces, as it is written"),
    "max_output_tokens": Field("honoured", "written in the whole question, calls included"),
    **_SAMPLING,
    "text": Field(
        "honoured", "format: text, json_object, json_schema (needs the extra grammar); verbosity: medium only"
    ),
    **_OURS,
    **_NEUTRAL,
    "stream_options": Field("ignored", "nothing is padded"),
    "include": Field("ignored", "everything is in gog_edge"),
    "truncation": Field("refused", "a conversation that is too long is refused, not cut", ("disabled",)),
    "previous_response_id": Field("refused", "nothing is stored: send the whole conversation as input"),
    "conversation": Field("refused", "nothing is stored: send the whole conversation as input"),
    "context_management": Field("refused", "nothing is stored or compacted", ([],)),
    "background": Field("refused", "nothing is stored: wait for the answer, or stream it", (False,)),
    "background_options": Field("refused", "nothing is stored: wait for the answer, or stream it"),
    "prompt": Field("refused", "prompts are not stored: send input"),
    "tools": Field("refused", _TOOLS, ([],)),
    "tool_choice": Field(
        "refused", "the client's tools are not called: only none and auto can be met", ("none", "auto")
    ),
    "max_tool_calls": Field("refused", "use max_turns"),
    "top_logprobs": Field("refused", "log probabilities are not kept", (0,)),
    "reasoning": Field("refused", "the policy reasons as it was trained to; max_turns and deadline bound it", ({},)),
    "moderation": Field("refused", "nothing is moderated here"),
}
