"""A long conversation, turn by turn: what each turn costs beside what its new tokens cost by themselves.

"By themselves" is the engine alone on the same rows behind the same cache, and the vision tower on the same picture:
no session, no sequence, no bookkeeping. Both are timed one after the other for every turn, the session first, and the
smallest of the repeats count; ratios are of processor time, which other programs disturb less. Whether time follows
what is behind and not how it came there is seen at the end: another session is given all that was said in one piece,
and then the words of the last turn.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.machine.probes import own_bytes
from gog_edge.bench.result import Cell
from gog_edge.bench.subject import Picture, picture
from gog_edge.engines.base import KvCache, PlacedImage
from gog_edge.errors import BenchError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.sequence import read_rows
from gog_edge.runtime.session import Session
from gog_edge.runtime.snapshots import pack, set_state
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import Trace
from gog_edge.sampling_options import GREEDY
from gog_edge.types import ImagePart

TURNS, FIRST, LAST, PICTURE_EVERY, SIZE, WRITTEN = 20, 2048, 24576, 3, (448, 336), 16
NAME = "conversation"


@dataclass(frozen=True)
class Plan:
    """How long the conversation is: its turns, tokens after the prompt of the first one and of the last, and how many
    the policy writes a turn."""

    turns: int = TURNS
    first: int = FIRST
    last: int = LAST
    written: int = WRITTEN

    def until(self, turn: int) -> int:
        """Tokens after the prompt of a turn, counted from 0."""
        return self.first + (self.last - self.first) * turn // max(self.turns - 1, 1)


@dataclass
class _Turn:
    """`before`: tokens that were said when it began; `computed`: tokens that ran for its prompt of `new` ones."""

    before: int
    new: int
    computed: int
    first_s: list[float]
    first_cpu: list[float]
    alone_cpu: list[float]
    resident: int


def conversation_cells(subject: LocalSubject, repeats: int, plan: Plan | None = None) -> Iterator[Cell]:
    """Cells of all turns, then of the whole.

    Raises:
        BenchError: the context is too short for it.
    """
    plan = plan or Plan()
    model, name = subject.model, subject.name
    if plan.last + plan.written > model.max_context:
        raise BenchError(f"{name}: {plan.last} tokens are more than the context of {model.max_context}")
    gc.collect()
    empty = own_bytes()
    session: Session | None = Session(model)
    assert session is not None
    said: list[list[Picture | list[int]]] = []
    turns = []
    for number in range(plan.turns):
        said.append(_parts(subject, session, number, plan.until(number) - len(session)))
        turns.append(_turn(model, session, said[-1], repeats))
        said[-1].append(_write(session, plan.written))
    full, kept = own_bytes(), 0 if session._cache is None else session._cache.nbytes * len(session) // _rows(session)
    session = None
    gc.collect()
    left = own_bytes()
    again = _in_one_piece(model, said, repeats)
    for number, turn in enumerate(turns, 1):
        ratio = min(turn.first_cpu) / min(turn.alone_cpu)
        note = f"{turn.new} new tokens behind {turn.before}"
        yield Cell(NAME, name, "first token", "s", tuple(turn.first_s), x=number, note=note)
        yield Cell(NAME, name, "first token, by its new tokens alone", "x", (ratio,), x=number, note=note)
        yield Cell(NAME, name, "resident", "B", (turn.resident,), x=number)
    known = sum(turn.before for turn in turns)
    twice = sum(turn.computed - turn.new for turn in turns)
    yield Cell(NAME, name, "tokens said before that came from the cache", "%", (100 * (1 - twice / known),), False)
    worst = max(min(turn.first_cpu) / min(turn.alone_cpu) for turn in turns)
    yield Cell(NAME, name, "first token, by its new tokens alone, worst turn", "x", (worst,))
    last = min(turns[-1].first_cpu) / min(again)
    yield Cell(NAME, name, "last turn, by the same behind one prompt", "x", (last,), note="1: only the length counts")
    yield Cell(NAME, name, "rows of the KV cache at the end", "B", (kept,))
    note = f"of {(full - empty) >> 20} MiB that the turns took, the engine's own buffers and mapped weights included"
    yield Cell(NAME, name, "memory given back after the end", "B", (max(full - left, 0),), False, note=note)


def _rows(session: Session) -> int:
    return session._cache.capacity if session._cache is not None else 1


def _parts(subject: LocalSubject, session: Session, number: int, tokens: int) -> list[Picture | list[int]]:
    """What a turn is given: a picture every few turns, and words up to `tokens` in all."""
    parts: list[Picture | list[int]] = []
    if number % PICTURE_EVERY == 0:
        scene = picture(*SIZE, seed=100 + number)
        plan = session.model.vision.plan(Frame.open(scene.pixels))
        parts.append(scene)
        tokens -= plan.rows * plan.columns + 2
    if tokens < 1:
        raise BenchError(f"turn {number + 1} has no room for its words")
    return [*parts, subject.ids(tokens, number)]


def _append(session: Session, parts: list[Picture | list[int]]) -> None:
    for part in parts:
        if isinstance(part, Picture):
            session.append([ImagePart(session.add_image(Frame.open(part.pixels)).index)])
        else:
            session.extend(part, given=True)


def _turn(model: Model, session: Session, parts: list[Picture | list[int]], repeats: int) -> _Turn:
    """A turn's prompt, `repeats` times, by the session and by the engine alone."""
    mark, before = session.mark(), len(session)
    first, busy, alone, computed = [], [], [], 0
    for repeat in range(repeats):
        session.rewind(mark)
        _append(session, parts)
        start = session.computed
        cache = session._cache
        state = pack(cache, 0, True) if model.state_arrays and cache is not None and start else []
        model.vision.cache.clear()
        session.trace = trace = Trace()
        began, used = time.perf_counter(), time.process_time()
        session.run()
        first.append(time.perf_counter() - began)
        busy.append(time.process_time() - used)
        if repeat == 0:
            computed = sum(int(s.fields["tokens"]) for s in trace.spans if s.stage in ("prefill", "decode"))
            computed -= before - start  # the last token that was written was not run yet
        cache = session._cache
        assert cache is not None
        if state:
            set_state(cache, start, state[-model.state_arrays :])
        model.vision.cache.clear()
        used = time.process_time()
        _engine_alone(model, session, cache, start)
        alone.append(time.process_time() - used)
    return _Turn(before, len(session) - before, computed, first, busy, alone, own_bytes())


def _engine_alone(model: Model, session: Session, cache: KvCache, start: int) -> None:
    """What is new in the conversation, through tower and decoder."""
    ids, where, written = session.sequence.ahead(start)
    end, at = start + len(ids), start
    spans = session.sequence.spans_between(start, end)
    features = {span: model.vision.encode(session.sequence.images[span.image].planned_view())[0] for span in spans}
    while at < end:
        stop = min(at + model.chunk, end)
        read, fit = read_rows(written[at - start : stop - start])
        stop = at + fit if model.rows_independent else stop
        part = slice(at - start, stop - start)
        placed = [
            PlacedImage(low - at, low - span.start, high - low, features[span])
            for span, low, high in session.sequence.covered(at, stop)
        ]
        model.decoder.forward(cache, at, ids[part], where[:, part], placed, last_k=1, read=read)
        at = stop


def _write(session: Session, tokens: int) -> list[int]:
    writer = TurnWriter(session, Sampler(GREEDY), Speculation(max_draft=0))
    return [i for piece in writer.turn(TurnOptions(tokens, eos=())) for i in piece.ids]


def _in_one_piece(model: Model, said: list[list[Picture | list[int]]], repeats: int) -> list[float]:
    """Processor seconds to the first token of the last turn, behind all that was said before in one piece."""
    session = Session(model)
    for *parts, wrote in said[:-1]:
        _append(session, parts)
        if isinstance(wrote, list):
            session.extend(wrote)
    session.run()
    mark, seconds = session.mark(), []
    for _ in range(repeats):
        session.rewind(mark)
        _append(session, said[-1][:-1])
        model.vision.cache.clear()
        used = time.process_time()
        session.run()
        seconds.append(time.process_time() - used)
    return seconds
