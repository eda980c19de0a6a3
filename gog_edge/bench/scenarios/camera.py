"""The camera scenario: frames come at a fixed rate; the policy answers a question about the newest, with a deadline.

The clock and the drop rule are those of `Agent.watch` (`agent/camera/newest.py`); only the camera is made up: frame n
is taken n / fps seconds after the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gog_edge.agent.camera.newest import Taken, cut_of, newest_answers
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
        return cut_of(self.deadline)


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
    camera = _Clockwork(fps, clock, sleep)
    seen = list(islice(newest_answers(camera, lambda taken, left: answer(taken.number, left), cut, clock), answers))
    ages = tuple(one.age for one in seen)
    return Watched(tuple(one.result for one in seen), ages, seen[-1].taken.number + 1, clock() - camera.start)


class _Clockwork:
    """A camera that takes frame n at n / fps seconds after its start, to the moment."""

    def __init__(self, fps: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.fps, self.clock, self.sleep = fps, clock, sleep
        self.start = clock()

    def newest(self, after: int) -> Taken[None]:
        now = self.clock() - self.start
        number = max(int(now * self.fps), after + 1)
        at = number / self.fps
        if at > now:
            self.sleep(at - now)
        return Taken(number, self.start + at, None)


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
