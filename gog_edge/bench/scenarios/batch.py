"""The batch scenario: conversations that write at the same time, and one that joins them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np

from gog_edge.bench.local_subject import PLAIN_DECODING, LocalSubject
from gog_edge.bench.result import Cell
from gog_edge.bench.statistics import paired_ratio
from gog_edge.errors import BenchError
from gog_edge.runtime.generate import TurnOptions, TurnWriter
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.sampling_options import Sampling

COUNTS = (1, 2, 4, 8)
CONTEXT, TOKENS = 512, 32  # behind so many, each writes so many
NEWCOMER = 256  # tokens of text that one reads who joins
_JOINS_AFTER = 4  # tokens of the others
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class Written:
    """A turn: when each token came (`time.perf_counter`), and which."""

    times: tuple[float, ...]
    ids: tuple[int, ...]


def batch_cells(subject: LocalSubject, repeats: int, counts: Sequence[int] = COUNTS) -> Iterator[Cell]:
    """Tokens a second of n conversations together, processor time a token, and how soon one who joins 7 others gets its
    first token, beside what it takes alone.

    Raises:
        BenchError: a conversation wrote other tokens in company than alone, where rows are independent.
    """
    sessions = [_begun(subject, number) for number in range(max(counts))]
    alone = [_write(session, TOKENS) for session in sessions]
    rates: dict[int, list[float]] = {n: [] for n in counts}
    processor: dict[int, list[float]] = {n: [] for n in counts}
    with ThreadPoolExecutor(len(sessions) + 1) as pool:
        for _ in range(repeats):
            for n in counts:
                some = sessions[:n]
                began, cpu = time.perf_counter(), time.process_time()
                together = list(pool.map(lambda session: _write(session, TOKENS), some))
                seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
                rates[n].append(n * TOKENS / seconds)
                processor[n].append(cpu / (n * TOKENS))
                if subject.model.rows_independent and [w.ids for w in together] != [w.ids for w in alone[:n]]:
                    raise BenchError(f"{subject.name}: a conversation wrote other tokens beside others than alone")
        for n in counts:
            times = paired_ratio(tuple(rates[n]), tuple(rates[counts[0]])).p50
            note = f"{times:.2f}x of {counts[0]}" if n != counts[0] else ""
            yield Cell("batch", subject.name, "all conversations", "1/s", tuple(rates[n]), False, n, note=note)
        for n in counts:
            times = paired_ratio(tuple(processor[counts[0]]), tuple(processor[n])).p50
            note = f"{times:.2f}x less than {counts[0]}" if n != counts[0] else ""
            yield Cell("batch", subject.name, "processor time a token", "s", tuple(processor[n]), x=n, note=note)
        yield from _joining(subject, sessions[: max(counts) - 1], repeats, pool)


def _joining(
    subject: LocalSubject, writers: Sequence[Session], repeats: int, pool: ThreadPoolExecutor
) -> Iterator[Cell]:
    firsts, alone, pauses, before = list[float](), list[float](), list[float](), 0
    for number in range(repeats):
        alone.append(_first(subject, number)[0])
        started = [Event() for _ in writers]
        others = [pool.submit(_write, s, 2 * TOKENS, started=e) for s, e in zip(writers, started)]
        if not all(event.wait(_PATIENCE_S) for event in started):
            raise BenchError(f"{subject.name}: the others did not begin to write")
        seconds, at = _first(subject, number)
        firsts.append(seconds)
        turns = [other.result(_PATIENCE_S) for other in others]
        before += sum(at < turn.times[-1] for turn in turns)
        pauses.append(max(float(np.diff(turn.times).max()) for turn in turns))
    note = f"before {before} of {repeats * len(writers)} running ones had ended"
    about = f"reads {NEWCOMER} tokens"
    yield Cell("batch", subject.name, "first token, alone", "s", tuple(alone), note=about)
    yield Cell("batch", subject.name, f"first token, beside {len(writers)}", "s", tuple(firsts), note=note)
    yield Cell("batch", subject.name, f"longest pause of those {len(writers)}", "s", tuple(pauses))


def _begun(subject: LocalSubject, number: int) -> Session:
    """A conversation of its own, read up to the token that is next to be written."""
    session = Session(subject.model)
    session.extend(subject.ids(CONTEXT, number), given=True)
    session.run()
    return session


def _first(subject: LocalSubject, number: int) -> tuple[float, float]:
    """(seconds to the first token of a newcomer, when it came)."""
    began = time.perf_counter()
    session = Session(subject.model)
    session.extend(subject.ids(NEWCOMER, 1000 + number), given=True)
    session.run()
    at = time.perf_counter()
    return at - began, at


def _write(session: Session, tokens: int, started: Event | None = None) -> Written:
    """Write a turn, and forget it again."""
    mark, writer = session.mark(), TurnWriter(session, Sampler(Sampling()), PLAIN_DECODING)
    times, ids = list[float](), list[int]()
    for token in writer.turn(TurnOptions(tokens, eos=())):
        ids += token.ids
        times += [time.perf_counter()] * len(token.ids)
        if started is not None and len(ids) >= _JOINS_AFTER:
            started.set()
    session.rewind(mark)
    return Written(tuple(times), tuple(ids))
