"""Questions on a time line of Rerun (https://rerun.io): pictures, boxes, crops, tokens, results, answers.

Entities: `pictures/N` (the question's, from 0) with `pictures/N/boxes` and `pictures/N/crop` (the newest box, in the
pixels of the original), `tokens`, `steps` (what the policy called, and what came back), `answer`. Time lines: `time`,
in seconds since the log began, and `frame` where frames have numbers. Boxes are in pixels of the upright picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import rerun as rr

from gog_edge.answer_view import STEP_COLOURS
from gog_edge.deadline import SYSTEM
from gog_edge.errors import RegionError, UsageError
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

_LIVE = ("rerun+http://", "rerun+https://")
_QUALITY, _CROP_SIDE = 90, 1024


@dataclass
class _Shown:
    """A picture of the running question and its boxes: (step, box) to label."""

    frame: Frame
    boxes: dict[tuple[int, Region], str] = field(default_factory=dict)


class RerunLog:
    """Writes to a file, or to a viewer that runs. A context manager.

    Args:
        target: a file (.rrd), or the address of a viewer or proxy, `rerun+http://127.0.0.1:9876/proxy`.

    Raises:
        UsageError: the file can't be written, or the address is none.
    """

    def __init__(self, target: str) -> None:
        self._stream = rr.RecordingStream("gog-edge")
        self._began = SYSTEM.now()
        self._pictures: list[_Shown] = []
        self._most = 0  # pictures that a question had
        try:
            if target.startswith(_LIVE):
                self._stream.connect_grpc(target)
            else:
                _check_writable(Path(target))
                self._stream.save(target)
        except (OSError, RuntimeError, ValueError) as e:
            raise UsageError(f"--rerun {target}: {e}") from e

    def asked(self, frames: Sequence[Frame], question: str) -> None:
        """A question begins: its pictures replace those of the one before."""
        self._now()
        self._pictures = [_Shown(frame) for frame in frames]
        for number in range(max(len(frames), self._most)):
            name = f"pictures/{number}"
            for part in ("boxes", "crop"):
                self._stream.log(f"{name}/{part}", rr.Clear(recursive=False))
            if number < len(frames):
                self._stream.log(name, rr.Image(frames[number].pixels).compress(jpeg_quality=_QUALITY))
            else:
                self._stream.log(name, rr.Clear(recursive=True))
        self._most = max(self._most, len(frames))
        self._stream.log("answer", rr.Clear(recursive=False))
        self._line("steps", f"question: {question}")

    def event(self, event: Event) -> None:
        """An event of the running question."""
        self._now()
        if isinstance(event, TokenEvent):
            self._stream.log("tokens", rr.TextLog(printable(event.text), level="DEBUG" if event.forced else "INFO"))
        elif isinstance(event, BoxEvent):
            self._box(event.step, event.image, event.region, "")
        elif isinstance(event, ActionEvent):
            action = event.action
            self._line("steps", _call(event.step, action), "WARN" if action.kind is ActionKind.INVALID else "INFO")
            if action.region is not None:
                self._box(event.step, action.image, action.region, action.label)
        elif isinstance(event, ObservationEvent):
            for line in _came_back(event.observation):
                self._line("steps", line, "ERROR" if event.observation.error else "INFO")
        elif isinstance(event, NoticeEvent):
            self._line("steps", event.text, "WARN")
        elif isinstance(event, AnswerEvent):
            self._answer(event.answer)

    def shown(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, logged as they pass."""
        for event in events:
            self.event(event)
            yield event

    def sighting(self, frame: Frame, number: int, taken_at: float, answer: Answer, question: str) -> None:
        """A camera's frame with all that came of it, at the moment of its answer. `taken_at`: seconds of Unix time."""
        self._stream.set_time("frame", sequence=number)
        self._stream.set_time("taken_at", timestamp=taken_at)
        self.asked([frame], question)
        for event in _replayed(answer):
            self.event(event)

    def close(self) -> None:
        """Write what is left."""
        self._stream.flush()
        self._stream.disconnect()

    def __enter__(self) -> RerunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _now(self) -> None:
        self._stream.set_time("time", duration=SYSTEM.now() - self._began)

    def _line(self, entity: str, text: str, level: str = "INFO") -> None:
        self._stream.log(entity, rr.TextLog(printable(text), level=level))

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
        name = f"pictures/{picture}"
        boxes = rr.Boxes2D(
            array=[b.as_tuple() for _, b in shown.boxes],
            array_format=rr.Box2DFormat.XYXY,
            labels=[printable(f"{s + 1} {text}".strip()) for (s, _), text in shown.boxes.items()],
            colors=[_colour(s) for s, _ in shown.boxes],
        )
        self._stream.log(f"{name}/boxes", boxes)
        if new:
            crop = rr.Image(_pixels(crop_of(shown.frame, box, _CROP_SIDE))).compress(jpeg_quality=_QUALITY)
            self._stream.log(f"{name}/crop", crop)

    def _answer(self, answer: Answer) -> None:
        own = {shown.frame: number for number, shown in reversed(list(enumerate(self._pictures)))}
        for step in answer.steps:
            for action in step.turn.actions:
                frame = answer.pictures[action.image] if 0 <= action.image < len(answer.pictures) else None
                if action.region is not None and frame in own:
                    self._box(step.index, own[frame], action.region, action.label)
        lines = [answer.text or f"no answer ({answer.stop.value})"]
        lines += [f"evidence: {hit.title}: {hit.text}" for hit in answer.evidence]
        self._stream.log("answer", rr.TextDocument(printable("\n".join(lines))))
        self._stream.log("answer/seconds", rr.Scalars(answer.seconds))


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


def _colour(step: int) -> tuple[int, int, int]:
    value = int(STEP_COLOURS[step % len(STEP_COLOURS)][1:], 16)
    return value >> 16, value >> 8 & 255, value & 255


def _pixels(picture: Any) -> Any:
    import numpy as np

    return np.asarray(picture)


def _check_writable(path: Path) -> None:
    """The SDK reports a file that it can't write only in its log.

    Raises:
        OSError: it can't be written. ValueError: it is no recording by its name.
    """
    if path.suffix != ".rrd":
        raise ValueError("a recording's name ends in .rrd (or is an address, rerun+http://…)")
    with path.open("ab"):
        pass
