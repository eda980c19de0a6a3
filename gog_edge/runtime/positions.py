"""M-RoPE positions of a growing conversation: three coordinates a token, and the delta that decoding goes on from.

Text tokens carry one number three times. A still image of gh x gw merged tokens starts at the next free number p:
its tokens get (p, p + row, p + column), and the text after it goes on at p + max(gh, gw), not at p + gh * gw (the
rule of Qwen2-VL's `get_rope_index`, for one temporal slice). So the next position is not the token count: `delta` =
next position - tokens, and it is a function of the length alone, which is what makes truncation exact.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import SessionError

_FIRST = 256


@dataclass(frozen=True)
class ImageSpan:
    """Where one image lies: `rows` x `columns` merged tokens from token `start`, of registry image `image`."""

    start: int
    rows: int
    columns: int
    image: int

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def stop(self) -> int:
        return self.start + self.count


class Positions:
    """[3, n] int32 positions, appended to and truncated. Not thread-safe (the session's lock covers it)."""

    def __init__(self) -> None:
        self._data: NDArray[np.int32] = np.zeros((3, _FIRST), np.int32)
        self._length = 0
        self._next = 0
        self._spans: list[ImageSpan] = []

    def __len__(self) -> int:
        return self._length

    @property
    def next(self) -> int:
        """The position that the next text token gets."""
        return self._next

    @property
    def delta(self) -> int:
        """`next` - number of tokens (never positive)."""
        return self._next - self._length

    @property
    def spans(self) -> tuple[ImageSpan, ...]:
        return tuple(self._spans)

    def view(self, start: int, stop: int) -> NDArray[np.int32]:
        """[3, stop - start]; a view that is valid until the next append."""
        return self._data[:, start : min(stop, self._length)]

    def append_text(self, count: int) -> None:
        """`count` text tokens."""
        self._grow(count)
        n = self._length
        self._data[:, n : n + count] = np.arange(self._next, self._next + count, dtype=np.int32)
        self._length += count
        self._next += count

    def append_image(self, rows: int, columns: int, image: int) -> ImageSpan:
        """`rows` x `columns` merged image tokens, row by row."""
        span = ImageSpan(self._length, rows, columns, image)
        self._grow(span.count)
        block = self._data[:, span.start : span.stop].reshape(3, rows, columns)
        block[0] = self._next
        block[1] = self._next + np.arange(rows, dtype=np.int32)[:, None]
        block[2] = self._next + np.arange(columns, dtype=np.int32)[None, :]
        self._length += span.count
        self._next += max(rows, columns)
        self._spans.append(span)
        return span

    def truncate(self, length: int) -> None:
        """Back to the first `length` tokens.

        Raises:
            SessionError: `length` is out of range or lies inside an image.
        """
        if not 0 <= length <= self._length:
            raise SessionError(f"can't go back to token {length}: the session has {self._length}")
        span = self.span_at(length)
        if span is not None and span.start < length:
            raise SessionError(f"can't cut at token {length}: it lies inside image {span.image} of the session")
        while self._spans and self._spans[-1].start >= length:
            self._spans.pop()
        self._length = length
        last = self._spans[-1] if self._spans else None
        if length == 0:
            self._next = 0
        elif last is not None and last.stop == length:
            self._next = int(self._data[0, last.start]) + max(last.rows, last.columns)
        else:
            self._next = int(self._data[0, length - 1]) + 1

    def span_at(self, token: int) -> ImageSpan | None:
        """The image that covers `token`, or None."""
        i = bisect_right(self._spans, token, key=lambda s: s.start) - 1
        return self._spans[i] if i >= 0 and token < self._spans[i].stop else None

    def spans_between(self, start: int, stop: int) -> list[ImageSpan]:
        """Images with at least one token in [start, stop)."""
        return [s for s in self._spans if s.start < stop and s.stop > start]

    def _grow(self, count: int) -> None:
        need = self._length + count
        if need > self._data.shape[1]:
            data = np.zeros((3, max(need, 2 * self._data.shape[1])), np.int32)
            data[:, : self._length] = self._data[:, : self._length]
            self._data = data
