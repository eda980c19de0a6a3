"""Questions as MCAP files, and live for Foxglove (https://foxglove.dev), in Foxglove's own schemas.

Topics: `/pictures/N` and `/pictures/N/crop` (foxglove.CompressedImage, JPEG), `/pictures/N/boxes`
(foxglove.ImageAnnotations), `/tokens` and `/steps` (foxglove.Log), `/answer` and `/timings` (JSON with a schema). The
log time is the computer's clock; a camera's picture has the time when it was taken as its timestamp, and so have its
boxes.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import foxglove
from foxglove import channels, messages

from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.plain import plain_hit, rgb_of_step
from gog_edge.integrations.timeline import QUALITY, Boxes, TimeLine, box_label
from gog_edge.sanitize import printable
from gog_edge.types import Answer

_LEVELS = {"INFO": messages.LogLevel.Info, "WARN": messages.LogLevel.Warning, "ERROR": messages.LogLevel.Error}
_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_HIT = {"type": "object", "properties": {"title": _TEXT, "text": _TEXT, "source": _TEXT, "score": _NUMBER}}
ANSWER = {
    "title": "gog_edge.Answer",
    "type": "object",
    "properties": {
        "text": _TEXT,
        "stop": _TEXT,
        "frame": {"type": "integer"},
        "evidence": {"type": "array", "items": _HIT},
    },
}
TIMINGS = {
    "title": "gog_edge.Timings",
    "type": "object",
    "properties": {"seconds": _NUMBER, "steps": {"type": "array", "items": _NUMBER}, "taken_to_answer": _NUMBER},
}


class FoxgloveLog(TimeLine):
    """Writes to a file, or serves viewers that connect, or both. A context manager.

    Args:
        path: a file (.mcap), which is replaced.
        address: host and port to serve Foxglove's WebSocket at; port 0: any.

    Raises:
        UsageError: the file can't be written, or the port can't be had.
    """

    def __init__(self, path: Path | None = None, address: tuple[str, int] | None = None) -> None:
        super().__init__()
        self._context = foxglove.Context()
        self._topics: dict[str, Any] = {}
        self._now = self._stamp = 0
        self._frame: tuple[int, float] | None = None
        self._writer: Any = None
        self._server: Any = None
        said = f"--mcap {path}"
        try:
            if path is not None:
                _check_writable(path)
                self._writer = foxglove.open_mcap(path, allow_overwrite=True, context=self._context)
            if address is not None:
                host, port = address
                said = f"--foxglove {host}:{port}"
                self._server = foxglove.start_server(name="gog-edge", host=host, port=port, context=self._context)
        except (OSError, RuntimeError, ValueError) as e:
            self.close()
            raise UsageError(f"{said}: {getattr(e, 'strerror', None) or e}") from e

    @property
    def port(self) -> int | None:
        """Where it serves; None if it does not."""
        return None if self._server is None else int(self._server.port)

    def tick(self) -> None:
        self._now = time.time_ns()
        self._stamp = self._now if self._frame is None else round(self._frame[1] * 1e9)

    def number(self, number: int, taken_at: float) -> None:
        self._frame = number, taken_at

    def write_picture(self, picture: int, frame: Frame | None) -> None:
        topic = f"/pictures/{picture}"
        if frame is not None:
            self._image(topic, frame.image())
        if f"{topic}/boxes" in self._topics:  # those of the picture before
            self._log(f"{topic}/boxes", channels.ImageAnnotationsChannel, messages.ImageAnnotations())

    def write_boxes(self, picture: int, frame: Frame, boxes: Boxes) -> None:
        loops, labels = [], []
        for (step, box), text in boxes.items():
            red, green, blue = (value / 255 for value in rgb_of_step(step))
            colour = messages.Color(r=red, g=green, b=blue, a=1.0)
            x0, y0, x1, y1 = box.as_tuple()
            loops.append(
                messages.PointsAnnotation(
                    timestamp=self._timestamp(),
                    type=messages.PointsAnnotationType.LineLoop,
                    points=[messages.Point2(x=x, y=y) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))],
                    outline_color=colour,
                    thickness=max(2.0, frame.width / 320),
                )
            )
            labels.append(
                messages.TextAnnotation(
                    timestamp=self._timestamp(),
                    position=messages.Point2(x=x0, y=y0),
                    text=box_label(step, text),
                    font_size=max(12.0, frame.width / 40),
                    text_color=messages.Color(r=1.0, g=1.0, b=1.0, a=1.0),
                    background_color=colour,
                )
            )
        shown = messages.ImageAnnotations(timestamp=self._timestamp(), points=loops, texts=labels)
        self._log(f"/pictures/{picture}/boxes", channels.ImageAnnotationsChannel, shown)

    def write_crop(self, picture: int, crop: Any) -> None:
        self._image(f"/pictures/{picture}/crop", crop)

    def write_token(self, text: str, forced: bool) -> None:
        self._text("/tokens", text, messages.LogLevel.Debug if forced else messages.LogLevel.Info)

    def write_line(self, text: str, level: str) -> None:
        self._text("/steps", printable(text), _LEVELS[level])

    def write_answer(self, answer: Answer) -> None:
        evidence = [{k: v for k, v in plain_hit(hit).items() if v is not None} for hit in answer.evidence]
        said: dict[str, Any] = {"text": answer.text, "stop": answer.stop.value, "evidence": evidence}
        spent: dict[str, Any] = {"seconds": answer.seconds, "steps": [step.seconds for step in answer.steps]}
        if self._frame is not None:
            said["frame"] = self._frame[0]
            spent["taken_to_answer"] = max(self._now / 1e9 - self._frame[1], 0.0)
        self._json("/answer", ANSWER, said)
        self._json("/timings", TIMINGS, spent)

    def close(self) -> None:
        """Finish the file; viewers are disconnected."""
        if self._writer is not None:
            self._writer.close()
        if self._server is not None:
            self._server.stop()

    def _timestamp(self) -> messages.Timestamp:
        return messages.Timestamp(sec=self._stamp // 10**9, nsec=self._stamp % 10**9)

    def _image(self, topic: str, picture: Any) -> None:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=QUALITY)
        image = messages.CompressedImage(
            timestamp=self._timestamp(), frame_id=topic[1:], data=out.getvalue(), format="jpeg"
        )
        self._log(topic, channels.CompressedImageChannel, image)

    def _text(self, topic: str, text: str, level: messages.LogLevel) -> None:
        now = messages.Timestamp(sec=self._now // 10**9, nsec=self._now % 10**9)
        self._log(topic, channels.LogChannel, messages.Log(timestamp=now, level=level, message=text, name="gog-edge"))

    def _json(self, topic: str, schema: dict[str, Any], content: dict[str, Any]) -> None:
        if topic not in self._topics:
            self._topics[topic] = foxglove.Channel(topic, schema=schema, context=self._context)
        self._topics[topic].log(content, log_time=self._now)

    def _log(self, topic: str, kind: Any, message: Any) -> None:
        if topic not in self._topics:
            self._topics[topic] = kind(topic, context=self._context)
        self._topics[topic].log(message, log_time=self._now)


def _check_writable(path: Path) -> None:
    """Raises OSError: it can't be written. ValueError: it is no MCAP file by its name."""
    if path.suffix != ".mcap":
        raise ValueError("the name of such a file ends in .mcap")
    with path.open("ab"):
        pass
