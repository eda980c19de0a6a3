"""The wire between the suite and a worker: a JSON line in, a JSON line out. Standard library only.

Requests: {"op": "load", "model": folder or address, "options": {…}}, {"op": "turn", "parts": [{"image": path,
"width": w, "height": h} or {"words": n, "seed": s}], "tokens": n}, {"op": "reset"}, {"op": "close"}.
Replies: {"ok": true, …} or {"ok": false, "kind": "package" | "model" | "unsupported" | "failed", "error": one line}.

An image is a file of raw RGB bytes, row by row. Reading it and making words are not part of a turn's time: both are
at hand in our own process, too.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Union

# Short common words: most are one token after a space in every large vocabulary.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education"
)


class WorkerError(Exception):
    """A failure that the suite reports in one line. `kind`: package, model, unsupported or failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Image:
    """Raw pixels: `data` holds height x width x 3 bytes."""

    width: int
    height: int
    data: bytes


@dataclass
class Words:
    """About `count` tokens of text without meaning; `seed` chooses them."""

    count: int
    seed: int


Part = Union[Image, Words]


@dataclass
class TurnTimes:
    """What a turn took. `stages`: seconds by stage, only those that the peer can tell apart. `new_tokens`: how much
    longer the turn made the conversation before it wrote; `computed`: tokens that really were run for that, 0 where
    the peer does not say."""

    total: float
    stages: dict[str, float] = field(default_factory=dict)
    new_tokens: int = 0
    generated: int = 0
    computed: int = 0


class Worker(Protocol):
    """One peer."""

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Get ready to answer; `seconds` without imports, and what the report should say of the peer."""
        ...

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        """Append `parts`, write exactly `tokens` tokens."""
        ...

    def reset(self) -> None:
        """Forget the conversation."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def serve(worker: Worker, peak: Callable[[], int] | None = None) -> None:
    """Answer requests until the input ends. What the peer's libraries print goes to stderr.

    `peak`: the most bytes that were ever resident where the model is; by default in this process.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"ok": True, **_handle(worker, request, peak or peak_bytes)}
        except WorkerError as e:
            reply = {"ok": False, "kind": e.kind, "error": _line(e)}
        except ImportError as e:
            reply = {"ok": False, "kind": "package", "error": _line(e)}
        except MemoryError:
            reply = {"ok": False, "kind": "failed", "error": "out of memory"}
        except Exception as e:  # noqa: BLE001 - whatever the peer raises is told to the suite
            traceback.print_exc()
            reply = {"ok": False, "kind": "failed", "error": f"{type(e).__name__}: {_line(e)}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        if request["op"] == "close":
            return


def _handle(worker: Worker, request: dict[str, Any], peak: Callable[[], int]) -> dict[str, Any]:
    op = request["op"]
    if op == "load":
        return {**worker.load(request["model"], request.get("options", {})), "peak": peak()}
    if op == "turn":
        turn = worker.turn([read_part(p) for p in request["parts"]], request["tokens"])
        if turn.generated != request["tokens"]:
            raise WorkerError("failed", f"it wrote {turn.generated} tokens instead of {request['tokens']}")
        return {**turn.__dict__, "peak": peak()}
    if op == "reset":
        worker.reset()
    elif op == "close":
        worker.close()
    else:
        raise WorkerError("unsupported", f"there is no operation {op!r}")
    return {}


def read_part(part: dict[str, Any]) -> Part:
    """A part of a request as Image or Words."""
    if "words" in part:
        return Words(part["words"], part["seed"])
    data = Path(part["image"]).read_bytes()
    if len(data) != part["width"] * part["height"] * 3:
        raise WorkerError("failed", f"{part['image']} has {len(data)} bytes: not {part['width']}x{part['height']} RGB")
    return Image(part["width"], part["height"], data)


def peak_bytes() -> int:
    """The most that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def token_ids(count: int, seed: int, high: int) -> list[int]:
    """`count` ordinary token ids below `high`, where the special ones begin; no two seeds give the same."""
    draw = random.Random(seed)
    return [draw.randrange(1, high) for _ in range(count)]


def text_of(count: int, seed: int, length: Callable[[str], int] | None = None) -> str:
    """Words without meaning that are `count` tokens long, or as near as whole words and letters come.

    `length`: tokens of a text; without it every word counts as one.
    """
    draw = random.Random(seed)
    known = _WORDS.split()
    words = [draw.choice(known) for _ in range(count)]
    if length is None:
        return " ".join(words)
    low, high = 0, len(words)  # most words that fit
    while low < high:
        middle = (low + high + 1) // 2
        if length(" ".join(words[:middle])) <= count:
            low = middle
        else:
            high = middle - 1
    text = " ".join(words[:low])
    while length(text + " a") <= count:
        text += " a"
    if length(text) < count and length(text + ".") == count:
        text += "."
    return text


def clock() -> float:
    """Seconds, for differences."""
    return time.perf_counter()


def folder(model: str, *files: str) -> Path:
    """The model's folder, with the files that a peer can't do without.

    Raises:
        WorkerError: it is missing, or one of the files is.
    """
    path = Path(model)
    if not path.is_dir():
        raise WorkerError("model", f"{model} is not a folder")
    for name in files:
        if not (path / name).is_file():
            raise WorkerError("model", f"{model} holds no {name}")
    return path


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__
