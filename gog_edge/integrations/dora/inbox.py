"""What the dataflow sends: the newest picture and the newest question, waited for under the camera's drop rule."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.agent.camera.newest import Taken
from gog_edge.deadline import SYSTEM
from gog_edge.errors import ImageError
from gog_edge.image.frame import Frame

_ARRAYS = {"rgb8": (3, False), "bgr8": (3, True), "rgba8": (4, False), "bgra8": (4, True), "mono8": (1, False)}
_FILES = ("jpeg", "jpg", "png", "avif", "webp")


@dataclass(frozen=True)
class Asking:
    """A picture and what is asked about it. `frame`: number of the picture, from 0; `open` decodes it."""

    frame: int
    open: Callable[[], Frame]
    question: str


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
        self._at, self._open = 0.0, None  # type: tuple[float, Callable[[], Frame] | None]
        self._given = -1

    def picture(self, open_it: Callable[[], Frame]) -> None:
        """A picture came; it replaces one that nobody asked about."""
        with self._changed:
            self._number, self._frame = self._number + 1, self._frame + 1
            self._at, self._open = SYSTEM.now(), open_it
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

    def newest(self, after: int) -> Taken[Asking] | None:
        """See `gog_edge.agent.camera.newest.Frames`."""
        with self._changed:
            while True:
                if self._open is not None and self._number > after and self._question:
                    self._given = self._number
                    return Taken(self._number, self._at, Asking(self._frame, self._open, self._question))
                if self._ended:
                    return None
                self._changed.wait()


def opened(data: NDArray[np.uint8], metadata: Mapping[str, Any]) -> Frame:
    """The picture in an Arrow array of bytes, as dora's nodes send it.

    Args:
        data: [n] uint8: rows of pixels without padding, or a file.
        metadata: `encoding` (bgr8, rgb8, bgra8, rgba8, mono8; jpeg, png, avif, webp), `width` and `height` in pixels
            (for pixels).

    Raises:
        ImageError: the encoding is unknown, the size is not that of the data, or the file can't be read.
    """
    encoding = str(metadata.get("encoding", "")).lower()
    if encoding in _FILES:
        return Frame.open(data.tobytes(), name=f"{encoding} picture")
    if encoding not in _ARRAYS:
        raise ImageError(f"encoding {encoding!r} is not known: send {', '.join((*_ARRAYS, *_FILES))}")
    channels, bgr = _ARRAYS[encoding]
    width, height = metadata.get("width"), metadata.get("height")
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise ImageError(f"a {encoding} picture needs width and height in its metadata")
    if data.size != width * height * channels:
        raise ImageError(
            f"a {encoding} picture of {width}x{height} has {width * height * channels} bytes, not {data.size}"
        )
    return Frame.from_array(data.reshape(height, width, channels), bgr=bgr, name=f"{encoding} picture")
