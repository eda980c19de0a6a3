"""Questions on a time line of Rerun (https://rerun.io): pictures, boxes, crops, tokens, results, answers.

Entities: `pictures/N` (the question's, from 0) with `pictures/N/boxes` and `pictures/N/crop` (the newest box, in the
pixels of the original), `tokens`, `steps` (what the policy called, and what came back), `answer`. Time lines: `time`,
in seconds since the log began, and `frame` where frames have numbers. Boxes are in pixels of the upright picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr

from gog_edge.deadline import SYSTEM
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.plain import rgb_of_step
from gog_edge.integrations.timeline import QUALITY, Boxes, TimeLine, box_label
from gog_edge.sanitize import printable
from gog_edge.types import Answer

_LIVE = ("rerun+http://", "rerun+https://")


class RerunLog(TimeLine):
    """Writes to a file, or to a viewer that runs. A context manager.

    Args:
        target: a file (.rrd), or the address of a viewer or proxy, `rerun+http://127.0.0.1:9876/proxy`.

    Raises:
        UsageError: the file can't be written, or the address is none.
    """

    def __init__(self, target: str) -> None:
        super().__init__()
        self._stream = rr.RecordingStream("gog-edge")
        self._began = SYSTEM.now()
        try:
            if target.startswith(_LIVE):
                self._stream.connect_grpc(target)
            else:
                _check_writable(Path(target))
                self._stream.save(target)
        except (OSError, RuntimeError, ValueError) as e:
            raise UsageError(f"--rerun {target}: {getattr(e, 'strerror', None) or e}") from e

    def tick(self) -> None:
        self._stream.set_time("time", duration=SYSTEM.now() - self._began)

    def number(self, number: int, taken_at: float) -> None:
        self._stream.set_time("frame", sequence=number)
        self._stream.set_time("taken_at", timestamp=taken_at)

    def write_picture(self, picture: int, frame: Frame | None) -> None:
        name = f"pictures/{picture}"
        for part in ("boxes", "crop"):
            self._stream.log(f"{name}/{part}", rr.Clear(recursive=False))
        self._stream.log("answer", rr.Clear(recursive=False))
        if frame is None:
            self._stream.log(name, rr.Clear(recursive=True))
        else:
            self._stream.log(name, rr.Image(frame.pixels).compress(jpeg_quality=QUALITY))

    def write_boxes(self, picture: int, frame: Frame, boxes: Boxes) -> None:
        shown = rr.Boxes2D(
            array=[box.as_tuple() for _, box in boxes],
            array_format=rr.Box2DFormat.XYXY,
            labels=[box_label(step, text) for (step, _), text in boxes.items()],
            colors=[rgb_of_step(step) for step, _ in boxes],
        )
        self._stream.log(f"pictures/{picture}/boxes", shown)

    def write_crop(self, picture: int, crop: Any) -> None:
        shown = rr.Image(np.asarray(crop)).compress(jpeg_quality=QUALITY)
        self._stream.log(f"pictures/{picture}/crop", shown)

    def write_token(self, text: str, forced: bool) -> None:
        self._stream.log("tokens", rr.TextLog(text, level="DEBUG" if forced else "INFO"))

    def write_line(self, text: str, level: str) -> None:
        self._stream.log("steps", rr.TextLog(printable(text), level=level))

    def write_answer(self, answer: Answer) -> None:
        lines = [answer.text or f"no answer ({answer.stop.value})"]
        lines += [f"evidence: {hit.title}: {hit.text}" for hit in answer.evidence]
        self._stream.log("answer", rr.TextDocument(printable("\n".join(lines))))
        self._stream.log("answer/seconds", rr.Scalars(answer.seconds))

    def close(self) -> None:
        """Write what is left."""
        self._stream.flush()
        self._stream.disconnect()


def _check_writable(path: Path) -> None:
    """The SDK reports a file that it can't write only in its log.

    Raises:
        OSError: it can't be written. ValueError: it is no recording by its name.
    """
    if path.suffix != ".rrd":
        raise ValueError("a recording's name ends in .rrd (or is an address, rerun+http://…)")
    with path.open("ab"):
        pass
