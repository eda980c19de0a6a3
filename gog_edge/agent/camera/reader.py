"""A thread that reads a source as fast as it comes and keeps the newest frame; it opens a source that broke again.

It waits `FIRST_S` before it tries again, twice as long after each failure, at most `MOST_S`; a frame resets that. A
source that could not be opened at all is not tried again: its name is wrong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from gog_edge.agent.camera.newest import Taken
from gog_edge.agent.camera.source import Capture, Source
from gog_edge.deadline import Budget, WaitedEvent
from gog_edge.errors import CameraError, CancelledError
from gog_edge.image.frame import Frame

log = logging.getLogger("gog_edge.camera")

FIRST_S, MOST_S = 0.5, 10.0
# How long `close` waits. A capture returns in its own time, and must not be in native code when the interpreter ends.
_STUCK_ITERATOR_S, _STUCK_CAPTURE_S = 0.5, 11.0


class FrameReader:
    """The newest frame of `source`. Close it, or cancel `budget`, to end its thread.

    Args:
        every: no frame is dropped: the next one is read when the one before was taken.
        patience: seconds without a frame after which `newest` gives up; None: never.
        budget: its clock is read; cancelling it ends the reading.
    """

    def __init__(self, source: Source, budget: Budget, *, every: bool = False, patience: float | None = None) -> None:
        self._source, self._every, self._patience = source, every, patience
        self._budget, self._clock = budget, budget.clock
        self._lock = threading.Lock()
        self._newest: Taken[Callable[[], Frame]] | None = None
        self._count = 0
        self._over = False
        self._error: BaseException | None = None
        self._news: WaitedEvent = self._clock.event()  # for who waits for a frame
        self._wanted: WaitedEvent = self._clock.event()  # for the thread, with `every`
        self._wanted.set()
        self._thread = threading.Thread(target=self._run, name="gog-camera", daemon=True)
        self._thread.start()

    def newest(self, after: int) -> Taken[Callable[[], Frame]] | None:
        """See `newest.Frames`; the content decodes the frame when it is called.

        Raises:
            CameraError: it could not be opened, or no frame came within the patience. CancelledError: it was closed.
            And whatever an iterator of frames raises.
        """
        while True:
            with self._lock:
                if (found := self._take(after)) is not None:
                    return found
                if self._over:
                    if self._error is not None:
                        raise self._error
                    return None
                self._news = news = self._clock.event()
            self._budget.check()
            with self._budget.on_stop(news.set):
                if not news.wait(self._patience):
                    raise CameraError(f"{self._source.name} gave no frame for {self._patience:g} s")

    def close(self) -> None:
        """End the thread; one that is stuck in somebody else's code is left behind."""
        self._budget.cancel()
        self._wanted.set()
        self._thread.join(_STUCK_ITERATOR_S if self._source.single else _STUCK_CAPTURE_S)

    def _take(self, after: int) -> Taken[Callable[[], Frame]] | None:
        found = self._newest
        if found is None or found.number <= after:
            return None
        if self._every:
            self._newest = None
            self._wanted.set()
            return Taken(found.number, self._clock.now(), found.content)
        return found

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._read_on()
        except CancelledError:
            pass
        except BaseException as e:  # noqa: BLE001 - for whoever waits for a frame
            error = e
        with self._lock:
            self._over, self._error = True, error
            self._news.set()

    def _read_on(self) -> None:
        """Read until the end of what has one; of what has none, until it is closed."""
        pause = FIRST_S
        while True:
            before = self._count
            try:
                capture = self._source.open()
                try:
                    self._read(capture)
                finally:
                    capture.close()
                if not capture.lasts:
                    return
                problem = "it ended"
            except CameraError as e:
                if self._count == 0:
                    raise
                problem = str(e)
            pause = FIRST_S if self._count > before else pause
            log.warning("%s is lost (%s); it is opened again in %g s", self._source.name, problem, pause)
            self._sleep(pause)
            pause = min(2 * pause, MOST_S)

    def _read(self, capture: Capture) -> None:
        while True:
            if self._every:
                self._wanted.wait()
                self._wanted = self._clock.event()
            self._budget.check()
            content = capture.read(self._budget)
            if content is None:
                if capture.lasts and self._count == 0:
                    raise CameraError(f"{self._source.name} was opened but gives no frame")
                return
            with self._lock:
                self._newest = Taken(self._count, self._clock.now(), _decoding(capture, content))
                self._count += 1
                self._news.set()

    def _sleep(self, seconds: float) -> None:
        woken = self._clock.event()
        with self._budget.on_stop(woken.set):
            woken.wait(seconds)
        self._budget.check()


def _decoding(capture: Capture, content: Any) -> Callable[[], Frame]:
    return lambda: capture.frame(content)
