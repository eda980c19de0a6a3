"""What is kept and not paid again: a frame over many questions, and the prompt that all conversations begin with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from gog_edge.agent.loader import bundle_dialect
from gog_edge.agent.options import RunOptions
from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.machine.limits import stage_limits
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.result import Cell
from gog_edge.bench.statistics import seconds_of
from gog_edge.bench.subject import Picture, TurnTimes, Words, picture
from gog_edge.bench.workloads import TurnSpec
from gog_edge.errors import BenchError
from gog_edge.runtime.session import Session

FRAME, WORDS, TOKENS = (1024, 768), 60, 4
COUNTS = (1, 3, 10, 30, 100)


def question_cells(
    subject: LocalSubject, counts: tuple[int, ...] = COUNTS, roofline: Roofline | None = None
) -> Iterator[Cell]:
    """The first question about a frame, every other one, and the mean over the first n of them.

    Every question but the first starts after the frame, as a branch of the conversation: earlier questions do not
    make it longer.

    Raises:
        BenchError: a later question ran the encoder or prefilled the frame again.
    """
    scene = picture(*FRAME, seed=5)
    turns = [subject.turn([Picture(scene.pixels), Words(WORDS, 1)], TOKENS)]
    mark = int(subject.session.sequence.spans[0].stop) + 1
    for number in range(1, max(counts)):
        subject.session.cut(mark)
        turns.append(subject.turn([Words(WORDS, 1 + number)], TOKENS))
    if any("encode" in t.stages or t.new_tokens != WORDS for t in turns[1:]):
        raise BenchError(f"{subject.name}: a later question about the same frame paid for its pixels again")
    bound = _question_limits(subject, roofline) if roofline is not None else (None, None)
    first, later = (t.total for t in turns[:1]), tuple(t.total for t in turns[1:])
    yield Cell("questions", subject.name, "first question", "s", tuple(first), limit=bound[0])
    yield Cell("questions", subject.name, "every other question", "s", later, limit=bound[1])
    yield Cell("questions", subject.name, "vision in every other question", "s", tuple(_vision(t) for t in turns[1:]))
    for n in counts:
        limit = None if bound[0] is None or bound[1] is None else (bound[0] + (n - 1) * bound[1]) / n
        mean = (sum(t.total for t in turns[:n]) / n,)
        yield Cell("questions", subject.name, "mean over the first n", "s", mean, x=n, limit=limit)


def _vision(turn: TurnTimes) -> float:
    return turn.stages.get("crop", 0.0) + turn.stages.get("encode", 0.0)


def _question_limits(subject: LocalSubject, roofline: Roofline) -> tuple[float | None, float | None]:
    whole, _ = stage_limits(subject.bundle, roofline, TurnSpec((FRAME,), WORDS, TOKENS), 0)
    _, image = stage_limits(subject.bundle, roofline, TurnSpec((FRAME,), 0, 0), 0)
    later, _ = stage_limits(subject.bundle, roofline, TurnSpec((), WORDS, TOKENS), image)
    return whole.of("total"), later.of("total")


def prompt_cells(bundle: Path, repeats: int) -> Iterator[Cell]:
    """Time until the system prompt and the tool schema are in the KV cache: computed, from memory, from disk."""
    with tempfile.TemporaryDirectory(prefix="gog-edge-bench-") as folder:
        options = RunOptions(cache_dir=Path(folder))
        subject = LocalSubject(bundle, options=options)
        found: dict[str, list[float]] = {"computed": [], "from memory": [], "from disk": []}
        tokens = 0
        for _ in range(repeats):
            for entry in Path(folder).rglob("*.gogt"):
                entry.unlink()
            for how in ("computed", "from memory", "from disk"):
                if how != "from memory":
                    subject.close()  # forgets what is kept in memory
                    subject.load()
                seconds, tokens, reused = _opening(subject)
                if (reused > 0) == (how == "computed"):
                    raise BenchError(f"the prompt that was to come {how} had {reused} tokens reused")
                found[how].append(seconds)
        subject.close()
    for how, samples in found.items():
        note = f"{tokens} tokens before the question's own"
        yield Cell("prompt", subject.name, f"prompt {how}", "s", tuple(samples), note=note)


def _opening(subject: LocalSubject) -> tuple[float, int, int]:
    """(seconds to the first token of a question without an image, tokens of the opening, tokens reused)."""
    session = Session(subject.model)
    segments = bundle_dialect(subject.bundle).opening("What is this?", 0)
    seconds = seconds_of(lambda: (session.append(segments), session.run()))
    return seconds, len(session), session.usage.reused_tokens
