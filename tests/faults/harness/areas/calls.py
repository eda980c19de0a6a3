"""Turns of policies: the calls and answers of the golden transcripts, damaged, under every dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from gog_edge import dialects
from gog_edge.dialects import Dialect
from gog_edge.types import ActionKind, Observation, Region, RegisteredImage, Turn
from tests.dialects.helpers import PHOTO
from tests.dialects.script import GOLDEN
from tests.faults.harness.core import Area, Attempt, Wrong
from tests.faults.harness.mutate import FRAGMENTS, mutated_text

MARKUP = re.compile(
    r"</?(tool_call|tool_response|answer|response|think|thinking|reason|grounding|bbox|text_search|img_search|function|"
    r"parameter)\b|<\|\w",
    re.IGNORECASE,
)
_CROP = RegisteredImage(1, 1000, 800, 448, 352, Region(9, 9, 99, 99), 0)
_PIECES = (
    *FRAGMENTS, "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<think>", "</think>", "<|im_end|>", "<code>",
    "</code>", "<tool_response>", "```", "[" * 3000, '{"a":' * 2000, "9" * 400, "\ud800", "(" * 2000, "<function=x>",
    "<parameter=q>", "\\boxed{", "<search>", "<bbox>", "<grounding>", "<reason>", "<img>",
)  # fmt: skip


def turns(name: str) -> list[str]:
    """What the policy writes in a golden transcript."""
    parts = re.split(r"(?m)^=== ", (GOLDEN / f"{name}.txt").read_text("utf-8"))
    return [part.partition("\n")[2].rstrip("\n") for part in parts if part.startswith("policy: ")]


@contextmanager
def _open(folder: Path, seed: int) -> Iterator[Attempt]:
    loaded = [dialects.load(name) for name in dialects.names()]
    texts = [turns(dialect.name) for dialect in loaded]
    every = [text for own in texts for text in own]

    def attempt(rng: Random, number: int) -> str:
        at = number % len(loaded)
        text = rng.choice(texts[at] if rng.random() < 0.8 else every)
        if rng.random() < 0.2:
            text += rng.choice(every)
        _, text = mutated_text(text, rng, _PIECES)
        return _read(loaded[at], text, rng)

    yield attempt


def _read(dialect: Dialect, text: str, rng: Random) -> str:
    images = rng.choice(([PHOTO], [PHOTO, _CROP], []))
    where = f"{dialect.name}: {text[:200]!r}"
    turn = dialect.parse(text, images)
    if turn.raw != text or not turn.actions:
        raise Wrong(f"no action, or another text: {where}")
    for action in turn.actions:
        if action.region is not None:
            view = images[action.image].view
            inside = view.x0 - 1e-6 <= action.region.x0 < action.region.x1 <= view.x1 + 1e-6
            if not inside:
                raise Wrong(f"a box outside of its picture: {where}")
    forced = dialect.parse(text, images, forced=True)
    if [a.kind for a in forced.actions] != [ActionKind.ANSWER]:
        raise Wrong(f"the forced turn is no answer: {where}")
    for known in (turn, forced):
        _is_answer(dialect, known, where)
    dialect.partial(text, images)
    dialect.observe(turn, [Observation(action) for action in turn.actions], question="q", images=images)
    return turn.actions[0].kind.value


def _is_answer(dialect: Dialect, turn: Turn, where: str) -> None:
    own = [m for s in dialect.syntaxes for m in (s.opening, s.closing) if m.startswith("<")]
    for action in turn.actions:
        if action.kind is ActionKind.ANSWER and (MARKUP.search(action.text) or any(m in action.text for m in own)):
            raise Wrong(f"markup as an answer, {action.text[:100]!r}: {where}")


AREA = Area("calls", "a typed turn; never an exception, never markup as an answer", _open)
