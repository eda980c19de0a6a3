"""Watching a camera: a question about its newest frame, again and again (`Agent.watch`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from gog_edge.agent.camera.newest import Taken, cut_of, newest_answers
from gog_edge.agent.camera.reader import FrameReader
from gog_edge.agent.camera.source import Source
from gog_edge.deadline import Budget, Duration, seconds_of
from gog_edge.errors import CancelledError
from gog_edge.image.frame import Frame
from gog_edge.types import Answer, StopReason


@dataclass(frozen=True)
class Sighting:
    """An answer about one frame. `number`: of the frame, from 0; `taken_at`: seconds of Unix time; `age`: seconds from
    taking the frame to its answer; `dropped`: frames since the one before that nobody asked about."""

    answer: Answer
    frame: Frame = field(repr=False)
    number: int
    taken_at: float
    age: float
    dropped: int


Asking = Callable[[Frame, "float | None", Budget], Answer]


class Watch:
    """An iterator of `Sighting`s and a context manager: leaving it cancels the running question and closes the source.

    Args:
        ask: answers a frame within some seconds (None: no limit), under a budget.
        deadline: from taking a frame to its answer.
        every: every frame is asked about, and the source waits; the deadline counts from the handing over then.
        patience: without a frame for so long, the source has failed; default: it is waited for.
    """

    def __init__(
        self,
        source: Source,
        ask: Asking,
        *,
        deadline: Duration | None = None,
        every: bool = False,
        patience: Duration | None = None,
    ) -> None:
        cut = math.inf if deadline is None else cut_of(seconds_of(deadline, "a deadline"))
        wait = None if patience is None else seconds_of(patience, "a patience")
        self._budget, self._ask = Budget(), ask
        self._reader = FrameReader(source, self._budget, every=every, patience=wait)
        self._asked = newest_answers(self._reader, self._answer, cut, self._budget.clock.now)

    def _answer(self, taken: Taken[Callable[[], Frame]], left: float) -> tuple[Frame, Answer]:
        frame = taken.content()
        return frame, self._ask(frame, None if math.isinf(left) else max(left, 1e-3), self._budget)

    def __iter__(self) -> Iterator[Sighting]:
        return self

    def __next__(self) -> Sighting:
        """The next sighting.

        Raises:
            StopIteration: the source has ended, or this was closed. CameraError: the source can't be opened, or gave no
            frame within the patience. And what `Agent.ask` raises.
        """
        try:
            seen = next(self._asked)
        except CancelledError:
            raise StopIteration from None
        frame, answer = seen.result
        if answer.stop is StopReason.CANCELLED:
            raise StopIteration
        now = time.time()
        return Sighting(answer, frame, seen.taken.number, now - seen.age, seen.age, seen.dropped)

    def close(self) -> None:
        """Cancel the running question and close the source; from any thread, any number of times."""
        self._reader.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
