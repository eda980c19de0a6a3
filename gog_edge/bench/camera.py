"""The camera scenario: frames come at a fixed rate, the newest one is answered, the others are dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gog_edge.bench.result import Cell
from gog_edge.bench.subject import Picture, Subject, Words, picture

RATES = (1.0, 5.0, 15.0)  # frames a second
DEADLINE = 1.0  # seconds from the moment a frame was taken
FRAME = (640, 480)
WORDS, TOKENS = 40, 16


@dataclass(frozen=True)
class Watched:
    """What became of a stream: seconds from taking a frame to its answer, frames taken and dropped meanwhile."""

    latencies: tuple[float, ...]
    taken: int
    dropped: int
    seconds: float

    def in_time(self, deadline: float) -> float:
        """Share of the answers, in percent."""
        return 100.0 * sum(latency <= deadline for latency in self.latencies) / len(self.latencies)


def watch(
    answer: Callable[[int], object],
    fps: float,
    answers: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Answer the newest frame, again and again, `answers` times.

    Args:
        answer: answers frame number n, counted from 0. Frame n is taken n / fps seconds after the start.
    """
    start = clock()
    last = -1
    latencies: list[float] = []
    while len(latencies) < answers:
        newest = int((clock() - start) * fps)
        if newest <= last:
            newest = last + 1
            sleep(max(newest / fps - (clock() - start), 0.0))
        answer(newest)
        latencies.append(clock() - start - newest / fps)
        last = newest
    return Watched(tuple(latencies), last + 1, last + 1 - answers, clock() - start)


def camera_cells(subject: Subject, repeats: int, rates: Sequence[float] = RATES) -> Iterator[Cell]:
    """For every frame rate: how old an answer's frame is, frames dropped, answers in time and a second."""
    scenes = [picture(*FRAME, seed=n) for n in range(4)]

    def answer(number: int) -> None:
        subject.reset()  # a camera's pixels are always new: nothing may come from a cache
        subject.turn([Picture(scenes[number % len(scenes)].pixels), Words(WORDS, number)], TOKENS)

    answer(0)
    for fps in rates:
        seen = watch(answer, fps, max(repeats, 5))
        note = f"{seen.taken} frames, deadline {DEADLINE:g} s"
        yield Cell("camera", subject.name, "age of the answer", "s", seen.latencies, x=fps)
        share = 100.0 * seen.dropped / seen.taken
        yield Cell("camera", subject.name, "frames dropped", "%", (share,), x=fps, note=note)
        late = (seen.in_time(DEADLINE),)
        yield Cell("camera", subject.name, "answers in time", "%", late, lower_is_better=False, x=fps, note=note)
        rate = (len(seen.latencies) / seen.seconds,)
        yield Cell("camera", subject.name, "answers a second", "1/s", rate, lower_is_better=False, x=fps)
