"""How often guesses are right on a policy's own conversations, what that is worth at given step times, and that it
changes nothing.

    python -m studies.speculation BUNDLE --questions q.jsonl --index DIR [--costs 40,44,52,57,75] [--count N] [--check]

The policy answers the questions without guessing; the transcripts are then read again token by token, with the same
index, memory and control that decoding uses. Guesses are verified, so the text would be the same, and what a run of k
rows takes is all that decides: `--costs` are milliseconds of runs of 1, 2, 3 … rows (another machine's, or a larger
policy's: the last step is carried on beyond the end); without it they are measured with the bundle. Then turns of 20
and 40 tokens, 20 seeds each, with guesses that are right by chance: the worst of them is printed. `--check` answers the
questions again with guesses, compares the tokens, and does the same for `--random` tokens of sampled turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gog_edge
from gog_edge.agent.options import NO_PREFETCH, RunOptions
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.image.frame import Frame
from gog_edge.prompts import Ask, read_questions
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import GuessMemory, Speculation, SpeculationControl, SpeculationStats, SuffixIndex
from gog_edge.sampling_options import GREEDY, Sampling
from gog_edge.types import Control, ImagePart, Text

_PAST = 256  # tokens in the cache while step times are measured
_NOISE = 0.02  # of a measured time
SHORT, SEEDS, CHANCES = (20, 40), 20, (0.0, 0.1, 0.3, 0.5, 0.8)


@dataclass(frozen=True)
class Transcript:
    """One conversation: token ids [n], which of them the policy wrote [n], and ids that no guess may hold."""

    tokens: NDArray[np.int32]
    written: NDArray[np.bool_]
    never: frozenset[int]

    def turns(self) -> Iterator[tuple[int, int]]:
        """First and one past the last token of each stretch that the policy wrote."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.written, [False]]).astype(np.int8)))
        yield from zip(edges[::2].tolist(), edges[1::2].tolist())


@dataclass(frozen=True)
class Outcome:
    """What guessing did to the transcripts; times are sums of step times, in seconds. `worst_turn`: time with over time
    without, of turns of at least ten tokens."""

    stats: SpeculationStats
    seconds: float
    plain_seconds: float
    worst_turn: float


def replay(transcripts: Sequence[Transcript], options: Speculation, costs: Sequence[float]) -> Outcome:
    """Decode the transcripts again on paper, one after the other. `costs[k - 1]`: seconds of a run of k rows."""
    memory, stats = GuessMemory(), SpeculationStats()
    seconds = plain = worst = 0.0
    for transcript in transcripts:
        control = SpeculationControl(options, memory)
        index = SuffixIndex(options.ngram_min, options.ngram_max, transcript.never)
        tokens = transcript.tokens
        for begin, end in transcript.turns():
            control.begin()
            at, took = begin, 0.0
            while at < end:
                most = min(options.max_draft, end - at - 1)
                guess = index.draft(tokens[:at], most) if most else []
                match = index.match if most else 0
                if most and options.remember:
                    said = memory.written
                    earlier, longer = said.index.draft(said.tokens, most, tokens[:at]), said.index.match
                    guess, match = (earlier, longer) if longer > match else (guess, match)
                run = guess[: control.length(len(guess), match)] if at > begin else []  # the first is the prefill's
                right = int(np.cumprod(np.asarray(run) == tokens[at : at + len(run)]).sum()) if run else 0
                spent = _cost(costs, len(run) + 1)
                control.ran(len(run), right, spent)
                memory.chances.learn(match, guess, tokens[at : at + right + 1].tolist())
                took += spent
                at += right + 1
            if options.remember:
                memory.written.add(
                    tokens[max(begin - 4, 0) : begin].tolist(), tokens[begin:end].tolist(), options.remember
                )
            seconds, plain = seconds + took, plain + (end - begin) * costs[0]
            if end - begin >= 10:
                worst = max(worst, took / ((end - begin) * costs[0]))
        for name in ("runs", "drafted", "accepted", "steps"):
            setattr(stats, name, getattr(stats, name) + getattr(control.stats, name))
    return Outcome(stats, seconds, plain, worst)


def _cost(costs: Sequence[float], rows: int) -> float:
    if rows <= len(costs):
        return costs[rows - 1]
    step = costs[-1] - costs[-2] if len(costs) > 1 else 0.0
    return costs[-1] + step * (rows - len(costs))


def short_turns(costs: Sequence[float], tokens: int, chance: float, known: bool) -> float:
    """The worst of `SEEDS` sessions of four turns of `tokens`: time with guesses, each token of which is right with
    `chance`, over time without. `known`: whether the model has decoded before, so that costs are known."""
    worst = 0.0
    for seed in range(SEEDS):
        rng, memory = np.random.default_rng(seed), GuessMemory()
        for rows in [*range(2, 10)] * 20 if known else ():
            memory.costs.learn(rows, _cost(costs, rows) / costs[0])
        control = SpeculationControl(Speculation(), memory)
        for _ in range(4):
            control.begin()
            spent, written = 0.0, 0
            while written < tokens:
                guess = [0] * min(8, tokens - written - 1)
                count, right = control.length(len(guess), 3), 0
                while right < len(guess) and rng.random() < chance:
                    right += 1
                took = _cost(costs, count + 1)
                control.ran(count, min(right, count), took * float(rng.normal(1, _NOISE)))
                memory.chances.learn(3, guess, [*guess[:right], 1])
                spent, written = spent + took, written + min(right, count) + 1
            worst = max(worst, spent / (tokens * costs[0]))
    return worst


def transcript_of(session: Session) -> Transcript:
    """A session's tokens, and who wrote them."""
    special = session.model.manifest.tokens
    never = frozenset({special.image_pad, special.vision_start, special.vision_end, *special.eos})
    return Transcript(session.tokens.copy(), session.sequence.written.copy(), never)


def record(agent: gog_edge.Agent, asks: Sequence[Ask]) -> tuple[list[Transcript], SpeculationStats]:
    """Answer the questions: transcripts, and counts of guesses."""
    found, stats = [], SpeculationStats()
    for ask in asks:
        with agent.session(ask.image) as conversation:
            conversation.ask(ask.question)
            found.append(transcript_of(conversation.session))
            for name in ("runs", "drafted", "accepted", "steps"):
                setattr(stats, name, getattr(stats, name) + getattr(conversation.speculation, name))
    return found, stats


def random_turns(model: Model, frame: Frame, tokens: int, options: Speculation) -> list[int]:
    """At least `tokens` sampled tokens of turns of 1 to 80, in conversations about one picture."""
    rng, wrote = np.random.default_rng(5), list[int]()
    while len(wrote) < tokens:
        session = Session(model)
        session.add_image(frame)
        session.append([Control("<|im_start|>user\n"), ImagePart(0), Text("What is it? Where? What is it?")])
        writer = TurnWriter(session, Sampler(Sampling(temperature=0.7, seed=len(wrote))), options)
        for _ in range(6):
            result = TurnResult()
            list(writer.turn(TurnOptions(int(rng.integers(1, 80)), ()), None, result))
            wrote += result.ids
            session.append([Text(result.text[: int(rng.integers(1, 60))])])
    return wrote


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


def check(
    bundle: Path, index: Path | None, asks: Sequence[Ask], plain: Sequence[Transcript], threads: int, tokens: int
) -> dict[str, object]:
    """Answer the questions and write `tokens` sampled ones with guesses: how many conversations and tokens differ."""
    found: dict[str, object] = {}
    for name, setting in (("adaptive", Speculation()), ("always", Speculation(adaptive=False))):
        engine = OrtOptions(threads=threads, spin=False)
        options = replace(_plain(), speculation=setting)
        with gog_edge.load(bundle, index=index, options=options, engine_options=engine) as agent:
            again, stats = record(agent, asks)
            differ = sum(not np.array_equal(a.tokens, b.tokens) for a, b in zip(plain, again))
            frame = Frame.open(asks[0].image)
            one = random_turns(agent.model, frame, tokens, Speculation(0))
            other = random_turns(agent.model, frame, tokens, setting)
        found[name] = {
            "conversations": len(again),
            "differ": differ,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "sampled_tokens": len(one),
            "sampled_differ": sum(a != b for a, b in zip(one, other)) + abs(len(one) - len(other)),
        }
        print("check", name, found[name])
    return found


def _plain() -> RunOptions:
    return RunOptions(
        sampling=GREEDY, grammar="off", prefetch=NO_PREFETCH, prefix_cache=False, speculation=Speculation(0)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a setting; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m studies.speculation", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with image and question")
    parser.add_argument("--images", type=Path, help="folder that the images are relative to")
    parser.add_argument("--index", type=Path, help="local index to search")
    parser.add_argument("--costs", help="milliseconds of runs of 1, 2, 3 … rows; default: measured here")
    parser.add_argument("--count", type=int, default=40, help="questions")
    parser.add_argument("--check", action="store_true", help="answer them again with guesses, and compare")
    parser.add_argument("--random", type=int, default=10_000, help="sampled tokens that --check compares")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; default: all")
    given = parser.parse_args(arguments)
    try:
        costs = [float(part) / 1e3 for part in given.costs.split(",")] if given.costs else []
        if given.count < 1 or any(not cost > 0 for cost in costs):
            raise UsageError("--count and --costs must be positive")
        asks = read_questions(given.questions, given.images)
        asks = asks[:: max(len(asks) // given.count, 1)][: given.count]
        engine = OrtOptions(threads=given.threads, spin=False)
        with gog_edge.load(given.bundle, index=given.index, options=_plain(), engine_options=engine) as agent:
            transcripts, _ = record(agent, asks)
            costs = costs or step_costs(agent.model, Speculation().max_draft + 1)
        report: dict[str, object] = {}
        settings = {
            "one conversation": Speculation(remember=0),
            "all conversations": Speculation(),
            "always": Speculation(adaptive=False),
        }
        for name, setting in settings.items():
            outcome = replay(transcripts, setting, costs)
            s = outcome.stats
            row = {
                "tokens": s.steps + s.accepted,
                "steps": s.steps,
                "drafted": s.drafted,
                "accept_rate": round(s.accept_rate, 4),
                "time_ratio": round(outcome.seconds / outcome.plain_seconds, 4) if outcome.plain_seconds else None,
                "worst_turn": round(outcome.worst_turn, 4),
            }
            report[name] = row
            print(name, *(f"{key} {value}" for key, value in row.items()))
        for known in (True, False):
            worst = {n: max(short_turns(costs, n, chance, known) for chance in CHANCES) for n in SHORT}
            report["short turns" if known else "short turns, new machine"] = worst
            print("costs known" if known else "a new machine", *(f"worst of {n} tokens {worst[n]:.3f}" for n in worst))
        if given.check:
            report["check"] = check(given.bundle, given.index, asks, transcripts, given.threads, given.random)
    except ValueError as e:
        print(e if isinstance(e, GogEdgeError) else f"--costs {given.costs}: {e}", file=sys.stderr)
        return 2
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    print(
        json.dumps({"costs_ms": [round(cost * 1e3, 3) for cost in costs], "conversations": len(transcripts), **report})
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
