"""Answers about what a dataflow sends: the newest picture, under the drop rule and the clock of `Agent.watch`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gog_edge.agent.camera.newest import Frames, Taken, cut_of, newest_answers
from gog_edge.deadline import SYSTEM
from gog_edge.errors import ContextOverflowError, ImageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.inbox import Asking
from gog_edge.integrations.plain import plain_answer
from gog_edge.sanitize import printable
from gog_edge.types import Answer, StopReason


@dataclass(frozen=True)
class Said:
    """What came of a picture. `frame` and `answer` are None where it can't be answered, and `error` says why. `age`:
    seconds from its arrival to the answer; `dropped`: pictures before it that nobody asked about."""

    asking: Asking
    frame: Frame | None
    answer: Answer | None
    error: str
    age: float
    dropped: int

    def plain(self) -> dict[str, Any]:
        """{"question", "frame", "age", "dropped"}, and {"error"} or {"width", "height", …}, see `plain_answer`."""
        said = {
            "question": self.asking.question,
            "frame": self.asking.frame,
            "age": round(self.age, 3),
            "dropped": self.dropped,
        }
        if self.frame is None or self.answer is None:
            return {**said, "error": self.error}
        return {**said, "width": self.frame.width, "height": self.frame.height, **plain_answer(self.answer)}


def answers(
    pictures: Frames[Asking], ask: Callable[[Frame, str, float | None], Answer], deadline: float | None
) -> Iterator[Said]:
    """Answer the newest picture until there are no more, or a question was cancelled.

    Args:
        ask: answers a question about a picture within some seconds (None: no limit).
        deadline: seconds from a picture's arrival to its answer.

    Raises:
        what `ask` raises. A picture that can't be read, or a question that is too long, is a `Said` with an error.
    """
    cut = math.inf if deadline is None else cut_of(deadline)

    def answer(taken: Taken[Asking], left: float) -> tuple[Frame, Answer] | str:
        try:
            frame = taken.content.open()
            return frame, ask(frame, taken.content.question, None if math.isinf(left) else max(left, 1e-3))
        except (ImageError, ContextOverflowError) as e:
            return printable(" ".join(str(e).split()))

    last = -1
    for asked in newest_answers(pictures, answer, cut, SYSTEM.now):
        asking, result = asked.taken.content, asked.result
        dropped, last = max(asking.frame - last - 1, 0), asking.frame
        if isinstance(result, str):
            yield Said(asking, None, None, result, asked.age, dropped)
        elif result[1].stop is StopReason.CANCELLED:
            return
        else:
            yield Said(asking, *result, "", asked.age, dropped)
