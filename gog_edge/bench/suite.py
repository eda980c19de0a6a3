"""Running conversations over subjects, interleaved: A B A B …, so that a machine that drifts drifts for all."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from gog_edge.bench.machine.limits import encode_without_windows, memory_needed, stage_limits
from gog_edge.bench.machine.probes import EnergyMeter
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.result import Cell
from gog_edge.bench.subject import Subject, TurnTimes
from gog_edge.bench.workloads import Workload
from gog_edge.bundle import Bundle
from gog_edge.errors import GogEdgeError

Progress = Callable[[str], None]
S = TypeVar("S", bound=Subject)
OURS = "gog-edge"
BESIDE = "decode, of the bandwidth beside it"


@dataclass
class Samples:
    """What one subject gave for one conversation: by turn and stage, one value per run.

    `read_gbs`: the bandwidth right before or after each run, 10^9 bytes per second.
    """

    stages: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    resident: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    tokens: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    joules: dict[str, list[float]] = field(default_factory=dict)
    read_gbs: list[float] = field(default_factory=list)

    def add(self, turns: Sequence[TurnTimes], joules: dict[str, float]) -> None:
        for number, turn in enumerate(turns):
            for stage, seconds in (*turn.stages.items(), ("total", turn.total), *_first_token(turn)):
                self.stages.setdefault((number, stage), []).append(seconds)
            for what, count in (("new tokens", turn.new_tokens), ("computed tokens", turn.computed)):
                self.tokens.setdefault((number, what), []).append(count)
        self.stages.setdefault((-1, "total"), []).append(sum(t.total for t in turns))
        self.resident.append(max(t.resident for t in turns))
        self.peak.append(max(t.peak for t in turns))
        for name, value in joules.items():
            self.joules.setdefault(name, []).append(value)


def _first_token(turn: TurnTimes) -> Iterator[tuple[str, float]]:
    """Time to the first token: all but decoding, for every subject that can tell decoding apart."""
    left = turn.total - turn.stages.get("decode", turn.total)
    if turn.generated > 1 and left > 0:
        yield "first token", left


def load_subjects(
    subjects: Sequence[S], skipped: dict[str, str], progress: Progress | None = None
) -> tuple[list[S], list[Cell]]:
    """(those that could be loaded, how long each took). The reasons of the others go to `skipped`."""
    loaded, cells = [], []
    for subject in subjects:
        if progress is not None:
            progress(f"loading {subject.name}")
        try:
            seconds = subject.load()
        except GogEdgeError as e:
            skipped[subject.name] = str(e)
            continue
        loaded.append(subject)
        cells.append(Cell("load", subject.name, "load to first token", "s", (seconds,)))
    return loaded, cells


def run_conversation(
    conversation: Workload,
    subjects: Sequence[Subject],
    repeats: int | None = None,
    progress: Progress | None = None,
    warmup: int | None = None,
    salt: int = 0,
    bandwidth: Callable[[], float] | None = None,
) -> tuple[dict[str, Samples], dict[str, str]]:
    """(samples by subject, why a subject dropped out). A subject that fails is out; the others continue.

    `repeats`, `warmup`: instead of the conversation's own. `salt`: another one gives other pixels and words, so that
    a peer that outlives a run of the suite does not know them. `bandwidth`: measured before and after each run of ours;
    the higher one counts.
    """
    samples = {s.name: Samples() for s in subjects}
    failed: dict[str, str] = {}
    uncounted = conversation.warmup if warmup is None else warmup
    runs = uncounted + (repeats or conversation.repeats)
    numbered = tuple(enumerate(conversation.turns))
    for run in range(runs):
        for subject in subjects:
            if subject.name in failed:
                continue
            if progress is not None:
                progress(f"{conversation.name} {subject.name} {run + 1}/{runs}")
            beside = bandwidth if subject.name == OURS and run >= uncounted else None
            before = beside() if beside is not None else 0.0
            meter = EnergyMeter()
            meter.start()
            try:
                subject.reset()
                turns = [subject.turn(t.parts(_seed(conversation, n, run, salt)), t.tokens) for n, t in numbered]
            except GogEdgeError as e:
                failed[subject.name] = str(e)
                continue
            finally:
                joules = meter.stop()
            if run >= uncounted:
                samples[subject.name].add(turns, joules)
                if beside is not None:
                    samples[subject.name].read_gbs.append(max(before, beside()))
    return {name: s for name, s in samples.items() if name not in failed}, failed


def _seed(conversation: Workload, turn: int, run: int, salt: int) -> int:
    """Of the pixels and words of one turn: no two turns of any scenario share a prefix that a cache could know."""
    return zlib.crc32(f"{conversation.name} {conversation.x} {turn} {run} {salt}".encode())


def cells(
    conversation: Workload, samples: dict[str, Samples], bundle: Bundle | None, roofline: Roofline | None
) -> Iterator[Cell]:
    """Samples as cells, our own with the roofline's limit beside them."""
    limits: dict[tuple[int, str], float] = {}
    read: dict[int, float] = {}
    notes: dict[tuple[int, str], str] = {}
    if bundle is not None and roofline is not None:
        before, whole = 0, 0.0
        for number, turn in enumerate(conversation.turns):
            bound, before = stage_limits(bundle, roofline, turn, before)
            for stage in ("encode", "prefill", "decode", "total"):
                if (value := bound.of(stage)) is not None:
                    limits[number, stage] = value
            whole += bound.of("total") or 0.0
            read[number] = bound.decode_bytes
            if (full := encode_without_windows(bundle, roofline, turn)) is not None:
                notes[number, "encode"] = f"without windows the limit would be {full:.2f} s"
        limits[-1, "total"] = whole
    several = len(conversation.turns) > 1
    for subject, found in samples.items():
        for (number, stage), values in found.stages.items():
            if number == -1 and not several:
                continue
            label, x = _place(conversation, number, stage)
            limit, note = None, ""
            if subject.startswith("gog-edge"):
                limit, note = limits.get((number, stage)), notes.get((number, stage), "")
            yield Cell(conversation.name, subject, label, "s", tuple(values), x=x, limit=limit, note=note)
        for (number, what), counts in found.tokens.items():
            if all(counts):
                label, x = _place(conversation, number, what)
                yield Cell(conversation.name, subject, label, "tokens", tuple(counts), x=x)
        needed = None if bundle is None or not subject.startswith("gog-edge") else memory_needed(bundle, conversation)
        for what, sizes in (("resident", found.resident), ("peak resident", found.peak)):
            if all(sizes):
                yield Cell(conversation.name, subject, what, "B", tuple(sizes), x=conversation.x, limit=needed)
        for name, joules in found.joules.items():
            yield Cell(conversation.name, subject, name, "J", tuple(joules), x=conversation.x)
        yield from _rates(conversation, subject, found, limits)
        yield from _beside(conversation, subject, found, read)


def _place(conversation: Workload, number: int, what: str) -> tuple[str, float | None]:
    """(the cell's label, its place on a curve). A turn with a place of its own needs no number."""
    if number == -1 or len(conversation.turns) == 1:
        return what, conversation.x
    x = conversation.turns[number].x
    return (what, x) if x is not None else (f"turn {number + 1} {what}", conversation.x)


def _rates(
    conversation: Workload, subject: str, found: Samples, limits: dict[tuple[int, str], float]
) -> Iterator[Cell]:
    """Tokens per second: of decoding, where a turn writes enough of them, and of prefill where it is separate."""
    for number, turn in enumerate(conversation.turns):
        work = [("decode", turn.tokens - 1)] if turn.tokens >= 8 else []
        if not turn.images and turn.words >= 128:
            work.append(("prefill", turn.words))
        for stage, tokens in work:
            seconds = found.stages.get((number, stage))
            if not seconds:
                continue
            label, x = _place(conversation, number, f"{stage} rate")
            least = limits.get((number, stage)) if subject.startswith("gog-edge") else None
            rates = tuple(tokens / s for s in seconds)
            bound = tokens / least if least else None
            yield Cell(conversation.name, subject, label, "tok/s", rates, lower_is_better=False, x=x, limit=bound)


def _beside(conversation: Workload, subject: str, found: Samples, read: dict[int, float]) -> Iterator[Cell]:
    """Decoding as a share of the bandwidth that was measured right before or after the same run."""
    for number, turn in enumerate(conversation.turns):
        seconds = found.stages.get((number, "decode"), [])
        if turn.tokens < 8 or number not in read or len(seconds) != len(found.read_gbs):
            continue
        label, x = _place(conversation, number, BESIDE)
        shares = tuple(100.0 * read[number] / (gbs * 1e9) / s for s, gbs in zip(seconds, found.read_gbs))
        note = f"{min(found.read_gbs):.1f} to {max(found.read_gbs):.1f} GB/s"
        if shares:
            yield Cell(
                conversation.name, subject, label, "%", shares, lower_is_better=False, x=x, limit=100.0, note=note
            )
