"""The newest frame, again and again: the clock and the drop rule of `Agent.watch` and of the bench's camera scenario.

The rule: asked about is the newest frame that was not asked about yet. One that is older than `cut` by then is dropped,
and the next one is waited for. Frames that come while a question runs are dropped, too. The deadline counts from the
moment when the frame was taken: what is left of it when the question is asked is what the question gets, less a
twentieth (at most 50 ms), as an answer that is cut off still has to be read and returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Content = TypeVar("Content", covariant=True)
R = TypeVar("R")


@dataclass(frozen=True)
class Taken(Generic[Content]):
    """Frame number `number` of a source, counted from 0. `at`: when it was taken, in seconds of the source's clock."""

    number: int
    at: float
    content: Content


class Frames(Protocol[Content]):
    """A source of frames."""

    def newest(self, after: int) -> Taken[Content] | None:
        """The newest frame with a number above `after`, waited for if there is none yet; None at the end."""
        ...


@dataclass(frozen=True)
class Asked(Generic[T, R]):
    """A frame and what came of it. `age`: seconds from taking it to its answer; `dropped`: frames before it that nobody
    asked about."""

    taken: Taken[T]
    result: R
    age: float
    dropped: int


def cut_of(deadline: float) -> float:
    """Seconds after a frame was taken at which its question is to return with what it has."""
    return deadline - min(0.05, 0.05 * deadline)


def newest_answers(
    frames: Frames[T], answer: Callable[[Taken[T], float], R], cut: float, now: Callable[[], float]
) -> Iterator[Asked[T, R]]:
    """Answer the newest frame until the source ends.

    Args:
        answer: answers a frame within the seconds that are left for it.
        cut: seconds that a frame may age until its answer; may be infinite.
        now: the source's clock, in seconds.
    """
    last = -1
    while (taken := frames.newest(last)) is not None:
        if now() - taken.at >= cut:
            newer = frames.newest(taken.number)
            if newer is None:
                return
            taken = newer
        result = answer(taken, max(taken.at + cut - now(), 0.0))
        yield Asked(taken, result, now() - taken.at, taken.number - last - 1)
        last = taken.number
