"""What a dataflow sends: the newest picture and the newest question, waited for under the camera's drop rule."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gog_edge.agent.camera.newest import Taken
from gog_edge.deadline import SYSTEM
from gog_edge.image.frame import Frame


@dataclass(frozen=True)
class Asking:
    """A picture and what is asked about it. `frame`: number of the picture, from 0; `open` decodes it; `header`: what
    its sender said about it, for who answers."""

    frame: int
    open: Callable[[], Frame]
    question: str
    header: Any = None


class Inbox:
    """Filled by the thread that reads the dataflow, emptied by the one that asks.

    A new question is about the newest picture, even if another one was asked about that already; then its deadline
    counts from the question.
    """

    def __init__(self, question: str) -> None:
        """`question`: the first one; "" waits for one."""
        self._changed = threading.Condition()
        self._question, self._ended = question, False
        self._number = self._frame = -1
        self._at, self._header = 0.0, None  # type: tuple[float, Any]
        self._open: Callable[[], Frame] | None = None
        self._given = -1

    def picture(self, open_it: Callable[[], Frame], header: Any = None) -> None:
        """A picture came; it replaces one that nobody asked about."""
        with self._changed:
            self._number, self._frame = self._number + 1, self._frame + 1
            self._at, self._open, self._header = SYSTEM.now(), open_it, header
            self._changed.notify_all()

    def question(self, text: str) -> None:
        """From now on this is asked."""
        with self._changed:
            self._question = text
            if self._given == self._number:
                self._number, self._at = self._number + 1, SYSTEM.now()
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def latest(self) -> Asking | None:
        """The newest picture, whether somebody asked about it or not; None before the first one."""
        with self._changed:
            if self._open is None:
                return None
            return Asking(self._frame, self._open, self._question, self._header)

    def newest(self, after: int) -> Taken[Asking] | None:
        """See `gog_edge.agent.camera.newest.Frames`."""
        with self._changed:
            while True:
                if self._open is not None and self._number > after and self._question:
                    self._given = self._number
                    return Taken(self._number, self._at, Asking(self._frame, self._open, self._question, self._header))
                if self._ended:
                    return None
                self._changed.wait()
