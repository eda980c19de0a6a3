"""What a conversation consists of so far: token ids, their M-RoPE positions and the images that they show. Nothing is
computed here; `Session` runs a sequence and keeps its KV cache.

Text tokens carry one position three times. A still image of gh x gw merged tokens starts at the next free position p:
its tokens get (p, p + row, p + column), and the text after it continues at p + max(gh, gw), not at p + gh * gw (the
rule of Qwen2-VL's `get_rope_index`, for one temporal slice). So the next position is not the token count: `delta` =
next position - tokens, and it is a function of the length alone, which is what makes truncation exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.base import Features
from gog_edge.errors import ContextOverflowError, SessionError
from gog_edge.manifest import SpecialTokens
from gog_edge.runtime.tokenizer import EncodedPart
from gog_edge.runtime.vision import VisionPlan
from gog_edge.types import Region, RegisteredImage

I32 = NDArray[np.int32]
Flags = NDArray[np.bool_]

_FIRST = 256


@dataclass
class SessionImage:
    """One image of the registry: `rows` x `columns` merged tokens. `plan` is None after loading a session that was
    saved without its frames."""

    geometry: RegisteredImage
    rows: int
    columns: int
    digest: str
    plan: VisionPlan | None
    features: Features | None = field(default=None, repr=False)

    @classmethod
    def planned(cls, plan: VisionPlan, index: int, source: int) -> SessionImage:
        """What `plan` shows, as registry image `index`, cut from the frame of image `source`."""
        return cls(plan.registered(index, source), plan.rows, plan.columns, plan.frame.digest, plan)

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def planned_view(self) -> VisionPlan:
        """How it is cut from its frame.

        Raises:
            SessionError: the session was loaded without its frames.
        """
        if self.plan is None:
            raise SessionError(
                f"image {self.geometry.index} has no pixels here: load the session with the frame of digest "
                f"{self.digest[:12]}…"
            )
        return self.plan

    def same(self, other: SessionImage) -> bool:
        """The policy sees the same pixels at the same size."""
        return self._seen() == other._seen()

    def _seen(self) -> tuple[str, int, int, Region | None]:
        return self.digest, self.rows, self.columns, self.geometry.region


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


@dataclass(frozen=True)
class Size:
    """Tokens that parts will take: `tokens` in all (markers included), `shown` of them stand for images."""

    tokens: int
    shown: int

    def check_room(self, limit: int, have: int, reserve: int = 0) -> None:
        """Whether they fit behind `have` tokens, with `reserve` left for the answer.

        Raises:
            ContextOverflowError: they do not.
        """
        if have + self.tokens + reserve <= limit:
            return
        what = f"{self.tokens} tokens ({self.shown} of images)" if self.shown else f"{self.tokens} tokens"
        kept = f" and {reserve} kept for the answer" if reserve else ""
        raise ContextOverflowError(
            f"the conversation has {have} tokens; {what} more{kept} exceed the context of {limit}: "
            "use smaller images or fewer results, raise max_context, or rewind"
        )


@dataclass(frozen=True)
class Mark:
    """A place of a session to come back to. Costs nothing; void once the conversation was cut before it."""

    length: int
    delta: int
    images: int
    cuts: int


class TokenSequence:
    """Token ids [n], positions [3, n] and the image registry; grows at the end, is cut at the end.

    Not thread-safe (the session's lock covers it). An image is written as start marker, one pad per merged token,
    end marker. Every token was either given to the policy or written by it (`written`), which decides how an engine
    computes it; tokens that are kept when others are said in their place keep their flag. To read: `length` (tokens),
    `next` (the position that the next text token gets), `spans` (images by place), `shown` (tokens up to the end of the
    last image).
    """

    def __init__(self, special: SpecialTokens) -> None:
        self.length = self.next = self.shown = 0
        self.spans: list[ImageSpan] = []
        self.images: list[SessionImage] = []
        self._special = special
        self._ids: I32 = np.zeros(_FIRST, np.int32)
        self._places: I32 = np.zeros((3, _FIRST), np.int32)
        self._written: Flags = np.zeros(_FIRST, np.bool_)

    def __len__(self) -> int:
        return self.length

    @property
    def ids(self) -> I32:
        """[n]; a view that is valid until the next append."""
        return self._ids[: self.length]

    @property
    def delta(self) -> int:
        """`next` - number of tokens (never positive)."""
        return self.next - self.length

    def positions(self, start: int, stop: int) -> I32:
        """[3, stop - start]; a view that is valid until the next append."""
        return self._places[:, start : min(stop, self.length)]

    @property
    def written(self) -> Flags:
        """[n] bool: which tokens the policy wrote; a view that is valid until the next append."""
        return self._written[: self.length]

    def image(self, index: int) -> SessionImage:
        """The registry's image `index`.

        Raises:
            SessionError: there is none.
        """
        return _image(self.images, index)

    @staticmethod
    def size(parts: Sequence[EncodedPart], images: Sequence[SessionImage]) -> Size:
        """What `parts` will take when `images` is the registry.

        Raises:
            SessionError: a part names an image that is not registered.
        """
        text = sum(len(p) for p in parts if isinstance(p, list))
        shown = [_image(images, p.image).tokens for p in parts if not isinstance(p, list)]
        return Size(text + sum(shown) + 2 * len(shown), sum(shown))

    # -- growing ---------------------------------------------------------------------------------------------

    def append(self, part: EncodedPart) -> int:
        """Add text, or an image with its markers; returns the image tokens among them.

        Raises:
            SessionError: the image is not registered.
        """
        if isinstance(part, list):
            self.append_ids(part)
            return 0
        image = self.image(part.image)
        self.append_ids([self._special.vision_start])
        self.append_image(image.rows, image.columns, part.image)
        self.append_ids([self._special.vision_end])
        return image.tokens

    def append_ids(self, ids: Sequence[int], *, written: bool | Flags = False) -> None:
        """Add text tokens. `written`: by the policy, all of them or which [n]."""
        self._try(ids, written)
        self.length += len(ids)
        self.next += len(ids)

    def append_image(self, rows: int, columns: int, image: int) -> ImageSpan:
        """Add `rows` x `columns` merged tokens of registry image `image`, row by row, without markers."""
        span = ImageSpan(self.length, rows, columns, image)
        if span.stop > len(self._ids):
            self._grow(span.count)
        self._ids[span.start : span.stop] = self._special.image_pad
        self._written[span.start : span.stop] = False
        block = self._places[:, span.start : span.stop].reshape(3, rows, columns)
        block[0] = self.next
        block[1] = self.next + np.arange(rows, dtype=np.int32)[:, None]
        block[2] = self.next + np.arange(columns, dtype=np.int32)[None, :]
        self.length = self.shown = span.stop
        self.next += max(rows, columns)
        self.spans.append(span)
        return span

    def ahead(self, start: int, draft: Sequence[int] = ()) -> tuple[I32, I32, Flags]:
        """Ids [n], positions [3, n] and `written` [n] from token `start` to the end and on over `draft`, which is no
        part of the sequence but what the policy may write; views that are valid until the next append."""
        stop = self.length + len(draft)
        if draft:
            self._try(draft, True)
        return self._ids[start:stop], self._places[:, start:stop], self._written[start:stop]

    def truncate(self, length: int) -> None:
        """Back to the first `length` tokens; the registry stays.

        Raises:
            SessionError: `length` is out of range or lies inside an image.
        """
        if not 0 <= length <= self.length:
            raise SessionError(f"can't go back to token {length}: the session has {self.length}")
        span = self.span_at(length)
        if span is not None and span.start < length:
            raise SessionError(f"can't cut at token {length}: it lies inside image {span.image} of the session")
        while self.spans and self.spans[-1].start >= length:
            self.spans.pop()
        last = self.spans[-1] if self.spans else None
        self.length, self.shown = length, last.stop if last is not None else 0
        if length == 0:
            self.next = 0
        elif last is not None and last.stop == length:
            self.next = int(self._places[0, last.start]) + max(last.rows, last.columns)
        else:
            self.next = int(self._places[0, length - 1]) + 1

    def _try(self, ids: Sequence[int], written: bool | Flags) -> None:
        """Write text after the end."""
        count, n = len(ids), self.length
        if n + count > len(self._ids):
            self._grow(count)
        self._ids[n : n + count] = ids
        self._written[n : n + count] = written
        self._places[:, n : n + count] = np.arange(self.next, self.next + count, dtype=np.int32)

    def _grow(self, count: int) -> None:
        """Make room for `count` more."""
        room = max(self.length + count, 2 * len(self._ids))
        ids, places, written = np.zeros(room, np.int32), np.zeros((3, room), np.int32), np.zeros(room, np.bool_)
        ids[: self.length], places[:, : self.length] = self.ids, self.positions(0, self.length)
        written[: self.length] = self.written
        self._ids, self._places, self._written = ids, places, written

    # -- looking ---------------------------------------------------------------------------------------------

    def span_at(self, token: int) -> ImageSpan | None:
        """The image that covers `token`, or None."""
        i = bisect_right(self.spans, token, key=lambda s: s.start) - 1
        return self.spans[i] if i >= 0 and token < self.spans[i].stop else None

    def spans_between(self, start: int, stop: int) -> list[ImageSpan]:
        """Images with at least one token in [start, stop)."""
        return [s for s in self.spans if s.start < stop and s.stop > start]

    def covered(self, start: int, stop: int) -> list[tuple[ImageSpan, int, int]]:
        """Images with tokens in [start, stop), and the first and one past the last of those tokens."""
        return [(s, max(s.start, start), min(s.stop, stop)) for s in self.spans_between(start, stop)]

    def drop_features(self, stop: int) -> None:
        """Let go of the features of images that end before token `stop` and can be encoded again."""
        for span in self.spans_between(0, stop):
            if span.stop <= stop and self.images[span.image].plan is not None:
                self.images[span.image].features = None

    def common(
        self, parts: Sequence[EncodedPart], images: Sequence[SessionImage], start: int = 0
    ) -> tuple[int, list[EncodedPart]]:
        """Up to which token this sequence says the same as `parts` do from token `start` on, and what of `parts` is
        left.

        Text is compared token by token, an image by content and size (`images` is the registry of `parts`).
        """
        at = start
        for number, part in enumerate(parts):
            if isinstance(part, list):
                here = self._ids[at : min(at + len(part), self.length)]
                differs = np.flatnonzero(here != np.asarray(part[: len(here)], np.int32))
                same = int(differs[0]) if differs.size else len(here)
                at += same
                if same < len(part):
                    return at, [part[same:], *parts[number + 1 :]]
                continue
            span = self.span_at(at + 1)
            old = self.images[span.image] if span is not None else None
            new = images[part.image]
            if span is None or old is None or span.start != at + 1 or span.image != part.image or not old.same(new):
                return at, list(parts[number:])
            at = span.stop + 1
            if at > self.length:  # cut right after the image: its end marker is gone
                return span.start - 1, list(parts[number:])
        return at, []


def run_end(at: int, end: int, chunk: int, last_k: int, share: int) -> int:
    """Where the run that begins at token `at` ends, of all that must be computed up to `end`.

    The last `last_k` rows, which need logits, stay together. A run ends at `share`, where a stored prefix ends, so that
    a stored and a computed one hold the same numbers.
    """
    stop = min(at + chunk, end)
    if 0 < end - stop < last_k:
        stop = end - last_k
    return share if at < share < stop else stop


def read_rows(written: Flags) -> tuple[tuple[int, int], int]:
    """Of tokens [n], n > 0, that are about to run: the first stretch [begin, end) that was given, and how many tokens
    can run together, namely those before a second such stretch."""
    count, begin = len(written), int(written.argmin())  # argmin and argmax, unlike `all`, make no calls in Python
    if written[begin]:
        return (0, 0), count
    end = begin + (int(written[begin:].argmax()) or count - begin)
    if end == count:
        return (begin, end), count
    second = end + int(written[end:].argmin())
    return (begin, end), count if written[second] else second


def shared(one: Sequence[EncodedPart], other: Sequence[EncodedPart]) -> list[EncodedPart]:
    """What both begin with."""
    out: list[EncodedPart] = []
    for a, b in zip(one, other):
        if isinstance(a, list) and isinstance(b, list):
            n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            if n:
                out.append(a[:n])
            if n < max(len(a), len(b)):
                break
        elif a == b:
            out.append(a)
        else:
            break
    return out


def _image(images: Sequence[SessionImage], index: int) -> SessionImage:
    if not 0 <= index < len(images):
        raise SessionError(f"the session has no image {index}: it has {len(images)}")
    return images[index]
