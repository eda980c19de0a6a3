"""What the ROS 2 node does, without ROS: its pictures, its turns, and the events of a goal.

The node itself is the colcon package in integrations/ros2: it only moves messages in and out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gog_edge.agent.camera.newest import Taken
from gog_edge.deadline import SYSTEM, Budget
from gog_edge.errors import ImageError, RegionError
from gog_edge.image.frame import Frame
from gog_edge.integrations.inbox import Asking, Inbox
from gog_edge.integrations.pixels import frame_of_pixels
from gog_edge.sanitize import printable
from gog_edge.types import ActionEvent, BoxEvent, Event, NoticeEvent, ObservationEvent, Region, TokenEvent

TOKENS_S = 0.1


class ImageMessage(Protocol):
    """sensor_msgs/Image. `step`: bytes of a row, with its padding."""

    encoding: str
    width: int
    height: int
    step: int
    data: Any


class FileMessage(Protocol):
    """sensor_msgs/CompressedImage. `format`: "jpeg", "png", "rgb8; jpeg compressed bgr8", …"""

    format: str
    data: Any


def frame_of_image(message: ImageMessage) -> Frame:
    """The picture in a sensor_msgs/Image; see `frame_of_pixels`.

    Raises:
        ImageError: the encoding is unknown, or sizes contradict each other.
    """
    data = np.frombuffer(message.data, np.uint8)
    size = message.width, message.height
    return frame_of_pixels(data, message.encoding, *size, message.step, name=f"{message.encoding} picture")


def frame_of_file(message: FileMessage) -> Frame:
    """The picture in a sensor_msgs/CompressedImage: whatever file `Frame.open` reads, whatever its format says.

    Raises:
        ImageError: it is a depth map, or can't be read.
    """
    said = printable(" ".join(str(message.format).split()))
    if "compressedDepth" in said:
        raise ImageError(f"format {said!r} is a depth map: send pictures")
    try:
        return Frame.open(bytes(message.data), name="compressed picture")
    except ImageError as e:
        raise ImageError(f"{e} (its format is {said!r})") from e


class Turns:
    """One question at a time. Those of goals go before those about the camera's pictures."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy, self._goals = False, 0

    @contextmanager
    def taken(self, budget: Budget, *, goal: bool) -> Iterator[None]:
        """Wait for a turn and hold it.

        Raises:
            CancelledError, DeadlineReached: the budget ended before.
        """
        with budget.on_stop(self._wake), self._changed:
            self._goals += goal
            try:
                budget.check()
                while self._busy or (self._goals and not goal):
                    self._changed.wait()
                    budget.check()
                self._busy = True
            finally:
                self._goals -= goal
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def wait_free(self, seconds: float) -> bool:
        """Whether no goal waits or runs, waited for."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and not self._goals, seconds)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Gate:
    """The camera's pictures as `newest_answers` takes them: none before the time that the rate allows, none while a
    goal has the turn, so that what is asked about afterwards is the newest then."""

    def __init__(self, inbox: Inbox, turns: Turns, now: Callable[[], float] = SYSTEM.now) -> None:
        self._inbox, self._turns, self._now = inbox, turns, now
        self._ended = threading.Event()
        self._not_before = 0.0
        self.rate = 0.0  # questions a second at most; 0: as fast as they are answered

    def newest(self, after: int) -> Taken[Asking] | None:
        """See `gog_edge.agent.camera.newest.Frames`."""
        while not self._ended.is_set():
            if not self._turns.wait_free(0.5) or self._ended.wait(min(max(self._not_before - self._now(), 0.0), 0.5)):
                continue
            if self._now() < self._not_before:
                continue
            taken = self._inbox.newest(after)
            if taken is None:
                return None
            if self._turns.wait_free(0.0):
                self._not_before = self._now() + (1 / self.rate if self.rate else 0.0)
                return taken
        return None

    def end(self) -> None:
        """Nothing more is asked about."""
        self._ended.set()
        self._inbox.end()


@dataclass(frozen=True)
class Progress:
    """What a goal's feedback says. `step`: from 1, 0 before the first one; `kind`: notice, token, box, call, result;
    `box`: in pixels of the upright picture."""

    step: int
    kind: str
    text: str
    box: Region | None = None


def progress(event: Event, frame: Frame) -> Progress | None:
    """An event of a question about `frame` as feedback; None for the answer, which is the result."""
    if isinstance(event, NoticeEvent):
        return Progress(0, "notice", printable(event.text))
    if isinstance(event, TokenEvent):
        return Progress(event.step + 1, "token", printable(event.text))
    if isinstance(event, BoxEvent):
        return Progress(event.step + 1, "box", "", _inside(event.image, event.region, frame))
    if isinstance(event, ActionEvent):
        action = event.action
        box = None if action.region is None else _inside(action.image, action.region, frame)
        words = " ".join((action.text or action.label).split())
        return Progress(event.step + 1, "call", printable(f"{action.kind.value} {words}".strip()), box)
    if isinstance(event, ObservationEvent):
        found = event.observation
        words = found.error or (f"{found.hits[0].title}: {found.hits[0].text}" if found.hits else "nothing")
        return Progress(event.step + 1, "result", printable(" ".join(words.split())))
    return None


def gathered(steps: Iterator[Progress], now: Callable[[], float]) -> Iterator[Progress]:
    """The same, with tokens of `TOKENS_S` seconds in one: feedback that comes faster than it is taken is lost."""
    waiting: Progress | None = None
    since = 0.0
    for step in steps:
        joins = waiting is not None and step.kind == waiting.kind == "token" and step.step == waiting.step
        if waiting is not None and joins and now() - since < TOKENS_S:
            waiting = Progress(step.step, "token", waiting.text + step.text)
            continue
        if waiting is not None:
            yield waiting
        waiting, since = (step, now()) if step.kind == "token" else (None, 0.0)
        if waiting is None:
            yield step
    if waiting is not None:
        yield waiting


def _inside(picture: int, region: Region, frame: Frame) -> Region | None:
    try:
        return region.clamp(frame.width, frame.height) if picture == 0 else None
    except RegionError:
        return None
