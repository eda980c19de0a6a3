"""Questions on a time line: what of their events a viewer is shown, whichever viewer it is.

Boxes are in pixels of the upright picture; `picture` is the number of one of the question's pictures, from 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from gog_edge.errors import RegionError
from gog_edge.image.frame import Frame
from gog_edge.integrations.plain import crop_of
from gog_edge.sanitize import printable
from gog_edge.types import (
    Action,
    ActionEvent,
    ActionKind,
    Answer,
    AnswerEvent,
    BoxEvent,
    Event,
    NoticeEvent,
    Observation,
    ObservationEvent,
    Region,
    TokenEvent,
)

CROP_SIDE = 1024
QUALITY = 90
Boxes = Mapping[tuple[int, Region], str]
"""(step from 0, box) to label."""


@dataclass
class _Shown:
    """A picture of the running question and its boxes."""

    frame: Frame
    boxes: dict[tuple[int, Region], str] = field(default_factory=dict)


class TimeLine(ABC):
    """A context manager; what inherits it writes what it is told at the time of `tick`."""

    def __init__(self) -> None:
        self._pictures: list[_Shown] = []
        self._most = 0  # pictures that a question had

    # -- what happens ------------------------------------------------------------------------------------------

    def asked(self, frames: Sequence[Frame], question: str) -> None:
        """A question begins: its pictures replace those of the one before."""
        self.tick()
        self._pictures = [_Shown(frame) for frame in frames]
        for number in range(max(len(frames), self._most)):
            self.write_picture(number, frames[number] if number < len(frames) else None)
        self._most = max(self._most, len(frames))
        self.write_line(f"question: {question}", "INFO")

    def event(self, event: Event) -> None:
        """An event of the running question."""
        self.tick()
        if isinstance(event, TokenEvent):
            self.write_token(printable(event.text), event.forced)
        elif isinstance(event, BoxEvent):
            self._box(event.step, event.image, event.region, "")
        elif isinstance(event, ActionEvent):
            action = event.action
            self.write_line(_call(event.step, action), "WARN" if action.kind is ActionKind.INVALID else "INFO")
            if action.region is not None:
                self._box(event.step, action.image, action.region, action.label)
        elif isinstance(event, ObservationEvent):
            for line in _came_back(event.observation):
                self.write_line(line, "ERROR" if event.observation.error else "INFO")
        elif isinstance(event, NoticeEvent):
            self.write_line(event.text, "WARN")
        elif isinstance(event, AnswerEvent):
            self._answer(event.answer)

    def shown(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, logged as they pass."""
        for event in events:
            self.event(event)
            yield event

    def sighting(self, frame: Frame, number: int, taken_at: float, answer: Answer, question: str) -> None:
        """A camera's frame with all that came of it, at the moment of its answer. `taken_at`: seconds of Unix time."""
        self.number(number, taken_at)
        self.asked([frame], question)
        for event in _replayed(answer):
            self.event(event)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what a viewer's log does ------------------------------------------------------------------------------

    @abstractmethod
    def tick(self) -> None:
        """What is written from here on happened now."""

    @abstractmethod
    def number(self, number: int, taken_at: float) -> None:
        """What is written from here on is about a camera's frame, taken at `taken_at` (seconds of Unix time)."""

    @abstractmethod
    def write_picture(self, picture: int, frame: Frame | None) -> None:
        """A picture without boxes; None: there is none any more."""

    @abstractmethod
    def write_boxes(self, picture: int, frame: Frame, boxes: Boxes) -> None:
        """All boxes on a picture so far."""

    @abstractmethod
    def write_crop(self, picture: int, crop: Any) -> None:
        """What the newest box cuts out: a Pillow image of at most `CROP_SIDE` pixels a side."""

    @abstractmethod
    def write_token(self, text: str, forced: bool) -> None:
        """What the policy wrote, or was made to write."""

    @abstractmethod
    def write_line(self, text: str, level: str) -> None:
        """The question, a call, a result, a notice. `level`: INFO, WARN or ERROR."""

    @abstractmethod
    def write_answer(self, answer: Answer) -> None:
        """The end of a question."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""

    # -- what both know ----------------------------------------------------------------------------------------

    def _box(self, step: int, picture: int, region: Region, label: str) -> None:
        """A box on the question's picture number `picture`; those on other pictures (crops, results) come with the
        answer, which says whose pixels they are in."""
        if not 0 <= picture < len(self._pictures):
            return
        shown = self._pictures[picture]
        try:
            box = region.clamp(shown.frame.width, shown.frame.height)
        except RegionError:
            return
        new = (step, box) not in shown.boxes
        if not new and shown.boxes[step, box] == label:
            return
        shown.boxes[step, box] = label
        self.write_boxes(picture, shown.frame, shown.boxes)
        if new:
            self.write_crop(picture, crop_of(shown.frame, box, CROP_SIDE))

    def _answer(self, answer: Answer) -> None:
        own = {shown.frame: number for number, shown in reversed(list(enumerate(self._pictures)))}
        for step in answer.steps:
            for action in step.turn.actions:
                frame = answer.pictures[action.image] if 0 <= action.image < len(answer.pictures) else None
                if action.region is not None and frame in own:
                    self._box(step.index, own[frame], action.region, action.label)
        self.write_answer(answer)


def box_label(step: int, label: str) -> str:
    """What is written on a box."""
    return printable(f"{step + 1} {label}".strip())


def _replayed(answer: Answer) -> Iterator[Event]:
    """The events of a question that has ended, without times."""
    for step in answer.steps:
        yield TokenEvent(step.index, step.turn.raw)
        for action in step.turn.actions:
            yield ActionEvent(step.index, action)
        for observation in step.observations:
            yield ObservationEvent(step.index, observation)
    yield AnswerEvent(answer)


def _call(step: int, action: Action) -> str:
    words = " ".join((action.text or action.label).split())
    box = "" if action.region is None else str([round(v) for v in action.region.as_tuple()])
    return " ".join(part for part in (f"{step + 1}", action.kind.value, words, box) if part)


def _came_back(observation: Observation) -> Iterator[str]:
    if observation.error:
        yield observation.error
    for rank, hit in enumerate(observation.hits, 1):
        yield f"{rank}. {hit.title}: {hit.text}"
