"""The protocol: what is asked for a turn, by kind of server, and what comes back piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gog_edge.engines.remote.options import ServerKind
from gog_edge.errors import EngineError
from gog_edge.sampling_options import Sampling

# Servers that let a request begin the policy's turn for it.
CONTINUES = frozenset({"vllm", "sglang", "llama.cpp"})


@dataclass(frozen=True)
class TurnRequest:
    """One turn to be written after `messages` (in the protocol's form).

    `continues`: the last message is the beginning of the turn. `side`: factor that sides of pictures are multiples of.
    """

    messages: Sequence[Mapping[str, Any]]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    continues: bool = False
    side: int = 28

    def body(self, model: str, kind: ServerKind) -> dict[str, Any]:
        """The request's JSON. Stop strings go to servers that leave them in the text; others are cut off here."""
        chosen = self.sampling
        body: dict[str, Any] = {
            "model": model,
            "messages": list(self.messages),
            "stream": True,
            "max_tokens": self.max_tokens,
            "temperature": chosen.temperature or 0.0,
        }
        if chosen.temperature:
            body |= {"top_p": chosen.top_p or 1.0, "seed": chosen.seed}
        if kind != "transformers":
            body["stream_options"] = {"include_usage": True}
        if kind in ("vllm", "sglang"):
            body |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        if kind in ("vllm", "sglang", "llama.cpp"):
            body |= {"top_k": chosen.top_k or (0 if kind == "llama.cpp" else -1), "min_p": chosen.min_p or 0.0}
        if kind in ("vllm", "sglang") and self.stop:
            body["stop"] = list(self.stop)
        penalty = chosen.repetition_penalty or 1.0
        if kind == "vllm":
            body |= {"repetition_penalty": penalty, "include_stop_str_in_output": True}
            # pictures arrive in the size that the policy is to see: whatever the server's limits are, none is changed
            body["mm_processor_kwargs"] = {"min_pixels": self.side**2, "max_pixels": 1 << 26}
        elif kind == "sglang":
            body |= {"repetition_penalty": penalty, "no_stop_trim": True}
        elif kind == "llama.cpp":
            body |= {"repeat_penalty": penalty, "cache_prompt": True, "reasoning_format": "none"}
        if self.continues and kind in ("vllm", "sglang"):
            body["continue_final_message"] = True
            if kind == "vllm":
                body["add_generation_prompt"] = False
        return body


@dataclass(frozen=True)
class Piece:
    """A part of a turn: text, reasoning and calls that the server took out of it, why it ended, counts of tokens."""

    text: str = ""
    thought: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    finish: str = ""
    usage: Mapping[str, Any] | None = None


def pieces(lines: Iterator[str]) -> Iterator[Piece]:
    """The pieces in a stream of server-sent events.

    Raises:
        EngineError: the server reports an error, says something else, or stops before the turn's end.
    """
    ended = False
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        piece = piece_of(data, "delta")
        ended = ended or bool(piece.finish)
        yield piece
    if not ended:
        raise EngineError("the connection ended in the middle of a turn")


def piece_of(data: str, part: str) -> Piece:
    """One JSON object of the protocol; `part`: "delta" of a stream, "message" of a whole answer.

    Raises:
        EngineError: an error object, or nothing of the protocol.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise EngineError(f"the server sent something that is not JSON: {data[:120]!r}") from e
    if not isinstance(said, dict):
        raise EngineError(f"the server sent something that is no chat completion: {data[:120]!r}")
    if "error" in said:
        raise EngineError(f"the server failed: {error_text(said)}")
    usage = said.get("usage")
    usage = usage if isinstance(usage, dict) else None
    choices = said.get("choices")
    if not isinstance(choices, list) or not choices:
        return Piece(usage=usage)
    first = choices[0] if isinstance(choices[0], dict) else {}
    delta = first.get(part)
    delta = delta if isinstance(delta, dict) else {}
    calls = delta.get("tool_calls")
    return Piece(
        text=_text(delta.get("content")),
        thought=_text(delta.get("reasoning_content")) or _text(delta.get("reasoning")),
        calls=tuple(c for c in calls if isinstance(c, dict)) if isinstance(calls, list) else (),
        finish=_text(first.get("finish_reason")),
        usage=usage,
    )


def error_text(said: Any) -> str:
    """What an error object says, in one line."""
    found = said
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:300]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
