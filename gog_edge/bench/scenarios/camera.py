"""The camera scenario: frames come at a fixed rate; the policy answers a question about the newest, with a deadline.

The deadline is the runtime's own (`Agent.ask(deadline=…)`), counted from the moment when the frame was taken: what is
left of it when the question is asked is what the agent gets, less a twentieth (at most 50 ms), as an answer that is cut
off still has to be read and returned. Frames that come meanwhile are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gog_edge.bench.result import Cell
from gog_edge.bench.subject import picture
from gog_edge.errors import BenchError
from gog_edge.image.frame import Frame
from gog_edge.types import Answer, StopReason

SIZE = (640, 480)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LEAST = 5  # answers a rate; a 95th percentile wants more: --repeats 40
Ask = Callable[[NDArray[np.uint8], float], Answer]


@dataclass(frozen=True)
class Stream:
    """What the camera shows, how often, and what is asked about it.

    Args:
        rates: frames per second, measured one after the other.
        deadline: seconds from taking a frame to its answer.
        frames: folder of pictures, shown in the order of their names and again from the first; default: made ones.
        question: asked about every frame.
        index: folder of a local index that the policy may search.
    """

    rates: tuple[float, ...] = (1.0, 5.0, 15.0)
    deadline: float = 1.0
    frames: Path | None = None
    question: str = "What is this?"
    index: Path | None = None

    @property
    def cut(self) -> float:
        """Seconds after the frame at which the agent is to return with what it has."""
        return self.deadline - min(0.05, 0.05 * self.deadline)


@dataclass(frozen=True)
class Watched:
    """What happened to a stream: answers, the seconds from taking a frame to its answer, frames taken and dropped."""

    answers: tuple[Answer, ...]
    latencies: tuple[float, ...]
    taken: int
    seconds: float

    @property
    def dropped(self) -> int:
        return self.taken - len(self.latencies)

    def overruns(self, deadline: float) -> tuple[float, ...]:
        """Seconds by which each answer was late; 0 for one in time."""
        return tuple(max(latency - deadline, 0.0) for latency in self.latencies)

    def share(self, holds: Sequence[bool]) -> float:
        """Percent of the answers for which something holds."""
        return 100.0 * sum(holds) / len(self.latencies)


def watch(
    answer: Callable[[int, float], Answer],
    fps: float,
    answers: int,
    cut: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Answer the newest frame, again and again, `answers` times.

    Args:
        answer: answers frame number n, counted from 0, within the seconds that are left for it. Frame n is taken
            n / fps seconds after the start.
        cut: seconds that a frame may age until its answer; one that is older already is dropped.
    """
    start = clock()
    last = -1
    given: list[Answer] = []
    latencies: list[float] = []
    while len(given) < answers:
        now = clock() - start
        newest = max(int(now * fps), last + 1)
        if now - newest / fps >= cut:
            newest += 1
        if newest / fps > now:
            sleep(newest / fps - now)
        given.append(answer(newest, max(newest / fps + cut - (clock() - start), 0.0)))
        latencies.append(clock() - start - newest / fps)
        last = newest
    return Watched(tuple(given), tuple(latencies), last + 1, clock() - start)


def camera_cells(ask: Ask, stream: Stream, repeats: int, subject: str = "gog-edge") -> Iterator[Cell]:
    """For every frame rate: how old an answer's frame is, frames dropped, deadlines missed, answers cut short.

    Raises:
        BenchError: the folder of frames holds no picture.
    """
    count = max(repeats, LEAST)
    ask(picture(*SIZE, seed=1).pixels, stream.cut)  # the machine's speed becomes known, as it would in a second
    for fps in stream.rates:
        seen = watch(_asking(ask, _frames(stream, count, seed=int(fps * 1000))), fps, count, stream.cut)
        yield from _cells(seen, stream, fps, subject)


def _asking(ask: Ask, shown: Iterator[NDArray[np.uint8]]) -> Callable[[int, float], Answer]:
    return lambda number, left: ask(next(shown), left)


def _cells(seen: Watched, stream: Stream, fps: float, subject: str) -> Iterator[Cell]:
    note = f"{seen.taken} frames, deadline {stream.deadline:g} s"
    late = seen.overruns(stream.deadline)
    cut = seen.share([a.stop is StopReason.DEADLINE for a in seen.answers])
    good = seen.share([bool(a.text) and not over for a, over in zip(seen.answers, late)])
    shares = (
        ("frames dropped", 100.0 * seen.dropped / seen.taken, True),
        ("deadline missed", seen.share([over > 0 for over in late]), True),
        ("cut short by the deadline", cut, True),
        ("answers in time", good, False),
    )
    yield Cell("camera", subject, "age of the answer", "s", seen.latencies, x=fps, note=note)
    yield Cell("camera", subject, "late by", "s", late, x=fps, note=note)
    for stage, share, lower in shares:
        yield Cell("camera", subject, stage, "%", (share,), lower_is_better=lower, x=fps, note=note)
    rate = (len(seen.answers) / seen.seconds,)
    yield Cell("camera", subject, "answers a second", "1/s", rate, lower_is_better=False, x=fps, note=note)


def _frames(stream: Stream, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """`count` pictures, decoded in advance like a camera's, all different: no cache may know them."""
    if stream.frames is None:
        return iter([picture(*SIZE, seed=seed + n).pixels for n in range(count)])
    files = sorted(p for p in stream.frames.iterdir() if p.suffix.lower() in SUFFIXES) if stream.frames.is_dir() else []
    if not files:
        raise BenchError(f"{stream.frames} holds no picture: --frames DIR with {', '.join(SUFFIXES)} files")
    shown = [np.array(Frame.open(files[n % len(files)]).pixels) for n in range(count)]
    for n, pixels in enumerate(shown):
        pixels[0, 0] = np.frombuffer((seed + n).to_bytes(3, "little"), np.uint8)
    return iter(shown)
