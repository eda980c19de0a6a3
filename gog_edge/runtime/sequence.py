"""What a conversation consists of so far: token ids, their positions and the images that they show. Nothing is
computed here; `Session` runs a transcript and keeps its KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.base import Features
from gog_edge.errors import SessionError
from gog_edge.manifest import SpecialTokens
from gog_edge.runtime.positions import Positions
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

    def same(self, other: SessionImage) -> bool:
        """The policy sees the same pixels at the same size."""
        return self._seen() == other._seen()

    def _seen(self) -> tuple[str, int, int, Region | None]:
        return self.digest, self.rows, self.columns, self.geometry.region


@dataclass(frozen=True)
class Size:
    """Tokens that parts will take: `tokens` in all (markers included), `shown` of them stand for images."""

    tokens: int
    shown: int


class Transcript:
    """Token ids [n], positions [3, n] and the image registry; grows at the end, is cut at the end.

    Not thread-safe (the session's lock covers it). An image is written as start marker, one pad a merged token,
    end marker. Every token was either given to the policy or written by it (`written`), which decides how an engine
    computes it; tokens that stay when others are said in their place stay what they were.
    """

    def __init__(self, special: SpecialTokens) -> None:
        self.positions = Positions()
        self.images: list[SessionImage] = []
        self._special = special
        self._ids: I32 = np.zeros(_FIRST, np.int32)
        self._written: Flags = np.zeros(_FIRST, np.bool_)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> I32:
        """[n]; a view that is valid until the next append."""
        return self._ids[: len(self)]

    @property
    def written(self) -> Flags:
        """[n] bool: which tokens the policy wrote; a view that is valid until the next append."""
        return self._written[: len(self)]

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
        self._put(np.full(image.tokens, self._special.image_pad, np.int32))
        self.positions.append_image(image.rows, image.columns, part.image)
        self.append_ids([self._special.vision_end])
        return image.tokens

    def append_ids(self, ids: Sequence[int], *, written: bool = False) -> None:
        """Add text tokens. `written`: by the policy."""
        self._put(np.asarray(ids, np.int32), written=written)
        self.positions.append_text(len(ids))

    def truncate(self, length: int) -> None:
        """Forget tokens from `length` on; the registry stays. Raises as `Positions.truncate`."""
        self.positions.truncate(length)

    def restore(self, ids: I32, written: Flags, positions: Positions, images: Sequence[SessionImage]) -> None:
        """Become a saved transcript, whose parts are known to fit each other."""
        self.positions, self.images = positions, list(images)
        self._ids = np.zeros(max(_FIRST, len(ids)), np.int32)
        self._ids[: len(ids)] = ids
        self._written = np.zeros(len(self._ids), np.bool_)
        self._written[: len(ids)] = written

    def common(
        self, parts: Sequence[EncodedPart], images: Sequence[SessionImage], start: int = 0
    ) -> tuple[int, list[EncodedPart]]:
        """Up to which token this transcript says the same as `parts` do from token `start` on, and what of `parts` is
        left.

        Text is compared token by token, an image by content and size (`images` is the registry of `parts`).
        """
        at = start
        for number, part in enumerate(parts):
            if isinstance(part, list):
                here = self._ids[at : min(at + len(part), len(self))]
                differs = np.flatnonzero(here != np.asarray(part[: len(here)], np.int32))
                same = int(differs[0]) if differs.size else len(here)
                at += same
                if same < len(part):
                    return at, [part[same:], *parts[number + 1 :]]
                continue
            span = self.positions.span_at(at + 1)
            old = self.images[span.image] if span is not None else None
            new = images[part.image]
            if span is None or old is None or span.start != at + 1 or span.image != part.image or not old.same(new):
                return at, list(parts[number:])
            at = span.stop + 1
            if at > len(self):  # cut right behind the image: its end marker is gone
                return span.start - 1, list(parts[number:])
        return at, []

    def _put(self, ids: I32, *, written: bool = False) -> None:
        n = len(self)
        if n + len(ids) > len(self._ids):
            room = max(n + len(ids), 2 * len(self._ids))
            grown, flags = np.zeros(room, np.int32), np.zeros(room, np.bool_)
            grown[:n], flags[:n] = self._ids[:n], self._written[:n]
            self._ids, self._written = grown, flags
        self._ids[n : n + len(ids)] = ids
        self._written[n : n + len(ids)] = written


def read_rows(written: Flags) -> tuple[tuple[int, int], int]:
    """Of tokens [n] that are about to run: the first stretch [begin, end) that was given, and how many tokens can run
    together, namely those before a second such stretch."""
    given = np.flatnonzero(~written)
    if not given.size:
        return (0, 0), len(written)
    begin = int(given[0])
    count = int(np.argmin(np.diff(given, append=-1) == 1)) + 1
    return (begin, begin + count), int(given[count]) if count < given.size else len(written)


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
