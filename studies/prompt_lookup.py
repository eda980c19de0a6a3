"""How often prompt lookup guesses right on a policy's own conversations, and what that is worth at given step times.

    python -m studies.prompt_lookup BUNDLE --questions q.jsonl --index DIR [--costs 40,44,52,57,75] [--count N]

The policy answers the questions without guessing; the transcripts are then read again token by token, with the same
lookup and the same control that decoding uses. Guesses are verified, so the text would be the same, and what a run of
k rows takes is all that decides: `--costs` are milliseconds of runs of 1, 2, 3 … rows (another machine's, or a larger
policy's: the last step is carried on beyond the end); without it they are measured with the bundle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gog_edge
from gog_edge.agent.options import NO_PREFETCH, RunOptions
from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.prompts import read_questions
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import PromptLookup, Speculation, SpeculationControl, SpeculationStats
from gog_edge.sampling_options import GREEDY
from gog_edge.types import Control

_OPENING, _END = "<|im_start|>assistant\n", "<|im_end|>"
_PAST = 256  # tokens in the cache while step times are measured


@dataclass(frozen=True)
class Transcript:
    """One conversation: token ids [n], which of them the policy wrote [n], and ids that no guess may hold."""

    tokens: NDArray[np.int32]
    written: NDArray[np.bool_]
    never: frozenset[int]


@dataclass(frozen=True)
class Outcome:
    """What guessing did to the transcripts; times are sums of step times, in seconds."""

    stats: SpeculationStats
    seconds: float
    plain_seconds: float


def replay(transcripts: Sequence[Transcript], options: Speculation, costs: Sequence[float]) -> Outcome:
    """Decode the transcripts again on paper. `costs[k - 1]`: seconds of a run of k rows."""
    stats, seconds, plain = SpeculationStats(), 0.0, 0.0
    for transcript in transcripts:
        lookup, control = PromptLookup(options, transcript.never), SpeculationControl(options)
        tokens, written = transcript.tokens, transcript.written
        at = int(written.argmax()) if written.any() else len(tokens)
        while at < len(tokens):
            if not written[at]:  # a turn of somebody else, then the first token after its prefill
                at += 1
                continue
            end = at + int((~written[at:]).argmax()) if not written[at:].all() else len(tokens)
            guess = lookup.draft(tokens[:at], min(options.max_draft, end - at - 1)) if options.max_draft else []
            guess = guess[: control.length(len(guess), lookup.match)]
            right = int(np.cumprod(np.asarray(guess) == tokens[at : at + len(guess)]).sum()) if guess else 0
            took = _cost(costs, len(guess) + 1)
            control.ran(len(guess), right, lookup.match, took)
            seconds += took
            plain += (right + 1) * costs[0]
            at += right + 1
        for name in ("runs", "drafted", "accepted", "steps"):
            setattr(stats, name, getattr(stats, name) + getattr(control.stats, name))
    return Outcome(stats, seconds, plain)


def _cost(costs: Sequence[float], rows: int) -> float:
    if rows <= len(costs):
        return costs[rows - 1]
    step = costs[-1] - costs[-2] if len(costs) > 1 else 0.0
    return costs[-1] + step * (rows - len(costs))


def transcript_of(session: Session) -> Transcript:
    """A session's tokens; the policy wrote what stands between an opening of its turn and the turn's end."""
    encode = session.model.tokenizer.encode
    opening, end = ([int(i) for part in encode([Control(t)]) for i in part] for t in (_OPENING, _END))  # type: ignore[union-attr]
    tokens, written = session.tokens.copy(), np.zeros(len(session), np.bool_)
    at = 0
    while at + len(opening) <= len(tokens):
        if tokens[at : at + len(opening)].tolist() != opening:
            at += 1
            continue
        at += len(opening)
        ends = np.flatnonzero(tokens[at:] == end[0])
        stop = at + int(ends[0]) if ends.size else len(tokens)
        written[at:stop] = True
        at = stop
    special = session.model.manifest.tokens
    never = frozenset({special.image_pad, special.vision_start, special.vision_end, *special.eos})
    return Transcript(tokens, written, never)


def record(agent: gog_edge.Agent, questions: Path, images: Path | None, count: int) -> list[Transcript]:
    """Answer `count` questions, spread over the file.

    Raises:
        DatasetError: the file can't be read.
    """
    asks = read_questions(questions, images)
    found = []
    for ask in asks[:: max(len(asks) // count, 1)][:count]:
        with agent.session(ask.image) as conversation:
            conversation.ask(ask.question)
            found.append(transcript_of(conversation.session))
    return found


def step_costs(model: Model, most: int, repeats: int = 5) -> list[float]:
    """Seconds of runs of 1 … `most` rows behind a few hundred tokens; medians, after one run that is not counted."""
    cache = model.decoder.new_cache(_PAST + most)
    costs = []
    for rows in range(1, most + 1):
        ids, where = (
            np.zeros(rows, np.int32),
            np.broadcast_to(np.arange(_PAST, _PAST + rows, dtype=np.int32), (3, rows)),
        )
        samples = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model.decoder.forward(cache, _PAST, ids, where, last_k=rows)
            samples.append(time.perf_counter() - start)
        costs.append(statistics.median(samples[1:]))
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a setting; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m studies.prompt_lookup", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with image and question")
    parser.add_argument("--images", type=Path, help="folder that the images are relative to")
    parser.add_argument("--index", type=Path, help="local index to search")
    parser.add_argument("--costs", help="milliseconds of runs of 1, 2, 3 … rows; default: measured here")
    parser.add_argument("--count", type=int, default=40, help="questions")
    given = parser.parse_args(arguments)
    try:
        costs = [float(part) / 1e3 for part in given.costs.split(",")] if given.costs else []
        if given.count < 1 or any(not cost > 0 for cost in costs):
            raise UsageError("--count and --costs must be positive")
        options = RunOptions(
            sampling=GREEDY, grammar="off", prefetch=NO_PREFETCH, prefix_cache=False, speculation=Speculation(0)
        )
        with gog_edge.load(given.bundle, index=given.index, options=options) as agent:
            transcripts = record(agent, given.questions, given.images, given.count)
            costs = costs or step_costs(agent.model, Speculation().max_draft + 1)
    except ValueError as e:
        print(e if isinstance(e, GogEdgeError) else f"--costs {given.costs}: {e}", file=sys.stderr)
        return 2
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    settings = {"adaptive": Speculation(), "always": Speculation(adaptive=False)}
    report = {}
    for name, setting in settings.items():
        outcome = replay(transcripts, setting, costs)
        s = outcome.stats
        report[name] = {
            "tokens": s.steps + s.accepted,
            "steps": s.steps,
            "drafted": s.drafted,
            "accept_rate": round(s.accept_rate, 4),
            "time_ratio": round(outcome.seconds / outcome.plain_seconds, 4) if outcome.plain_seconds else None,
        }
        print(name, *(f"{key} {value}" for key, value in report[name].items()))
    print(
        json.dumps({"costs_ms": [round(cost * 1e3, 3) for cost in costs], "conversations": len(transcripts), **report})
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
