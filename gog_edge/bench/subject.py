"""What is measured: a conversation of images and tokens, by us and by peers, behind one Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Picture:
    """Pixels to be appended: uint8 [H, W, 3], always new ones, so that no cache can know them."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Words:
    """`count` tokens of text without meaning; `seed` chooses them."""

    count: int
    seed: int = 0


Part = Picture | Words


@dataclass(frozen=True)
class TurnTimes:
    """One turn: seconds by stage (only those that the subject can tell apart), tokens in and out, resident bytes.

    `new_tokens`: how much the turn made the conversation longer before anything was written. `computed`: tokens that
    were really run through the model for that, more where a cache was lost. `peak`: the most bytes ever resident in
    the subject's process. 0 where a subject can't say.
    """

    total: float
    stages: dict[str, float] = field(default_factory=dict)
    new_tokens: int = 0
    generated: int = 0
    resident: int = 0
    computed: int = 0
    peak: int = 0


class Subject(Protocol):
    """Something that can run a conversation. One process each, so that memory can be told apart."""

    @property
    def name(self) -> str: ...

    def load(self) -> float:
        """Get ready to answer; seconds until the first token could be computed.

        Raises:
            BenchError: it is not available here; says why.
        """
        ...

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        """Append `parts`, then write exactly `tokens` tokens."""
        ...

    def reset(self) -> None:
        """Forget the conversation and everything cached of it."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def picture(width: int, height: int, seed: int) -> Picture:
    """Smooth noise: compresses and resizes like a photograph, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    pixels = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return Picture(np.ascontiguousarray(pixels ^ rng.integers(0, 16, pixels.shape, np.uint8)))
