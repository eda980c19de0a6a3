"""Memory for decoding: what an image will need, and turns, so that all threads of a process together stay in bounds."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gog_edge.allowance import available_memory
from gog_edge.deadline import Budget
from gog_edge.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from gog_edge.image.frame import ImageLimits

# Bytes a pixel at the peak, the frame's own three included: Pillow's image (4), and what the decoders hold beside it
# (WebP: two pictures, the packed lines and a copy; AVIF and HEIF: planes of up to 16 bits; JPEG: coefficients if it is
# progressive; TIFF: a strip, which may be the whole image). tests/image/test_memory.py measures them.
_BYTES_A_PIXEL = {"WEBP": 17, "AVIF": 17, "HEIF": 17, "TIFF": 14}
_PROGRESSIVE, _OTHERS, _DECODED = 13, 8, 4
_SMALL = 64 << 20  # is not compared with what is free: that costs as much as decoding a thumbnail


def needed(image: Image) -> int:
    """Bytes that bringing `image` to a frame takes; `image`: opened and not yet loaded, or in memory already."""
    pixels = image.width * image.height
    if image.format is None:
        return _DECODED * pixels
    progressive = image.format in ("JPEG", "MPO") and bool(image.info.get("progressive"))
    return pixels * (_PROGRESSIVE if progressive else _BYTES_A_PIXEL.get(image.format, _OTHERS))


class DecodeMemory:
    """Bytes in use by decoders. Thread-safe; who asked first is served first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._queue: deque[tuple[int, int, Future[None]]] = deque()

    @contextmanager
    def hold(self, size: int, limits: ImageLimits, name: str, budget: Budget) -> Iterator[None]:
        """`size` bytes; waits until they are free beside what other threads decode.

        Raises:
            ImageError: they are more than the limit, or than this process can get.
            CancelledError, DeadlineReached: the budget ended first.
        """
        if size > limits.memory:
            raise ImageError(
                f"{name}: decoding takes {size >> 20} MiB of memory, {limits.memory >> 20} are allowed; "
                "scale it down, store it as JPEG or PNG, or raise ImageLimits.memory"
            )
        if size > _SMALL and size > (free := available_memory()):
            raise ImageError(f"{name}: decoding takes {size >> 20} MiB of memory, {free >> 20} are free; scale it down")
        turn: Future[None] = Future()
        mine = (size, limits.memory, turn)
        with self._lock:
            self._queue.append(mine)
            self._admit()
        try:
            budget.wait(turn)
            yield
        finally:
            with self._lock:
                if turn.done():
                    self._taken -= size
                else:
                    self._queue.remove(mine)
                self._admit()

    def _admit(self) -> None:
        """Give turns while there is room (call with the lock held)."""
        while self._queue and (not self._taken or self._taken + self._queue[0][0] <= self._queue[0][1]):
            size, _, turn = self._queue.popleft()
            self._taken += size
            turn.set_result(None)


MEMORY = DecodeMemory()
