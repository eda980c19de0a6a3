"""What can be watched: a camera's number, a V4L2 device, a stream's address, a GStreamer pipeline, a video, frames.

Captures are opened with OpenCV (`pip install 'gog-edge[camera]'`); an iterable of frames needs nothing. Frames of a
file come at the speed at which they were filmed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, Union

from gog_edge.deadline import Budget
from gog_edge.errors import CameraError, UsageError
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits, ImageSource
from gog_edge.runtime.telemetry import redact

WatchSource = Union[int, str, Path, Iterable[ImageSource]]
"""What `Agent.watch` takes: 0, "/dev/video2", "rtsp://…", "v4l2src ! … ! appsink", "clip.mp4", frames."""

_TIMEOUT_MS = 5000  # to open a stream, and between two of its frames
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Capture(Protocol):
    """Something that frames come from. `lasts`: it has no end, so one that ends is opened again."""

    lasts: bool

    def read(self, budget: Budget) -> Any:
        """The next frame as `frame` takes it, waited for; None at the end. CameraError if it can't be read."""
        ...

    def frame(self, content: Any) -> Frame:
        """What `read` returned as a frame."""
        ...

    def close(self) -> None: ...


class Source:
    """A source before it is opened: `name` is for people, without credentials; `open` may be called again.

    Args:
        limits: what is refused of an iterable's pictures; OpenCV decodes the others.

    Raises:
        UsageError: this is nothing that can be watched. CameraError: a file does not exist.
    """

    def __init__(self, source: WatchSource, bgr: bool | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._given: Any = source
        self._bgr, self._limits = bgr, limits
        self.single = False  # frames of an iterable are gone once they were read
        given: Any = source
        if isinstance(given, (bool, bytes, bytearray)) or not isinstance(given, (int, str, Path, Iterable)):
            raise UsageError(f"a {type(source).__name__} can't be watched: give a camera, an address, a file or frames")
        if not isinstance(given, (int, str, Path)):
            self._given, self.single, self.name = iter(given), True, "the frames"
            return
        if isinstance(source, str) and source.strip().isdecimal():
            self._given = int(source)
        self.name = f"camera {self._given}" if isinstance(self._given, int) else redact(str(source))
        if self._is_file and not Path(str(source)).is_file():
            raise CameraError(f"{self.name} is no video: there is no such file")

    @property
    def _is_file(self) -> bool:
        given = str(self._given)
        named = isinstance(self._given, (str, Path)) and not given.startswith("/dev/")
        return named and not _ADDRESS.match(given) and " ! " not in given

    def open(self) -> Capture:
        """Start capturing.

        Raises:
            CameraError: it can't be opened. UsageError: OpenCV is missing, or was built without GStreamer.
        """
        if self.single:
            return _Iterated(self._given, self._bgr, self._limits)
        return _open_cv2(self._given, self.name, self._is_file)


class _Iterated:
    """Frames that somebody else makes."""

    lasts = False

    def __init__(self, frames: Iterator[ImageSource], bgr: bool | None, limits: ImageLimits) -> None:
        self._frames, self._bgr, self._limits = frames, bgr, limits

    def read(self, budget: Budget) -> Any:
        return next(self._frames, None)

    def frame(self, content: Any) -> Frame:
        return Frame.open(content, bgr=self._bgr, limits=self._limits)

    def close(self) -> None:
        return


def _open_cv2(given: int | str | Path, name: str, is_file: bool) -> Capture:
    try:
        import cv2
    except ImportError as e:
        raise UsageError(f"watching {name} needs OpenCV: pip install 'gog-edge[camera]'") from e
    text = str(given)
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
    if " ! " in text:
        if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
            raise UsageError(
                "this OpenCV was built without GStreamer: use one that has it (JetPack's, or your distribution's)"
            )
        capture = cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
    elif isinstance(given, int) or text.startswith("/dev/"):
        capture = cv2.VideoCapture(
            given if isinstance(given, int) else text, cv2.CAP_V4L2 if os.name == "posix" else cv2.CAP_ANY
        )
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver can, no old frames wait in it
    else:
        capture = cv2.VideoCapture(text, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        capture.release()
        raise CameraError(f"{name} can't be opened as a camera, stream or video")
    return _Video(capture, name, cv2.CAP_PROP_POS_MSEC) if is_file else _Live(capture, name)


class _Live:
    """A camera or a stream."""

    lasts = True

    def __init__(self, capture: Any, name: str) -> None:
        self._capture, self.name = capture, name

    def read(self, budget: Budget) -> Any:
        there, content = self._capture.read()
        return content if there else None

    def frame(self, content: Any) -> Frame:
        return Frame.from_cv2(content, name=self.name)

    def close(self) -> None:
        self._capture.release()


class _Video(_Live):
    """A file, at the speed of its own time stamps."""

    lasts = False

    def __init__(self, capture: Any, name: str, position: int) -> None:
        super().__init__(capture, name)
        self._position = position
        self._began: float | None = None

    def read(self, budget: Budget) -> Any:
        content = super().read(budget)
        if content is not None:
            shown, now = float(self._capture.get(self._position)) / 1e3, budget.clock.now()
            self._began = now - shown if self._began is None else self._began
            woken = budget.clock.event()
            with budget.on_stop(woken.set):
                woken.wait(max(self._began + shown - now, 0.0))
        return content
