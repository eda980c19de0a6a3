"""The rotary angles and index arrays that the graphs take as inputs, made on the host, cached, as the family says.

The graphs hold no index computation. What is computed stands in `gog_edge.families`; here it is kept for the grids and
positions that come again. Decoder positions are M-RoPE triples (time, height, width), one column a token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge import families
from gog_edge.families.layout import F32
from gog_edge.manifest import Manifest, VisionSpec

_PLACES = 256  # whose angles are made together; a run of written text is far shorter
_FEW = 32


def vision_inputs(manifest: Manifest, rows: int, columns: int) -> dict[str, NDArray[Any]]:
    """Every input of the vision graph but `patches`, for a grid of `rows` x `columns` patches.

    The arrays are cached by grid and read-only.

    Raises:
        ImageError: the grid is not a positive multiple of the merge size.
        BundleError: the bundle's family is not known here.
    """
    return dict(_vision_inputs(manifest.family, manifest.vision, manifest.preprocessing.merge_size, rows, columns))


@lru_cache(maxsize=16)
def _vision_inputs(family: str, vision: VisionSpec, merge: int, rows: int, columns: int) -> dict[str, NDArray[Any]]:
    inputs = families.named(family).vision_inputs(vision, merge, rows, columns)
    for array in inputs.values():
        array.flags.writeable = False
    return inputs


class Rotary:
    """The decoder's rotary angles, as its family turns them. Thread-safe."""

    def __init__(self, manifest: Manifest) -> None:
        """Raises BundleError where the bundle's family is not known here."""
        self._frequencies, self._axes = families.named(manifest.family).rotary(manifest.decoder)
        self._text: tuple[int, F32, F32] = (0, *self._rotate(np.zeros((3, 0), np.int64)))

    def __call__(self, positions: NDArray[np.integer[Any]]) -> tuple[F32, F32]:
        """cos and sin [s, rotary pairs] of M-RoPE `positions` [3, s].

        Those of written text, which counts on by one on all axes, are made ahead of time.
        """
        count = positions.shape[1]
        first = int(positions[0, 0])
        if count > _FEW or not (positions == np.arange(first, first + count)).all():
            return self._rotate(positions)
        start, cos, sin = self._text
        at = first - start
        if not 0 <= at <= len(cos) - count:
            cos, sin = self._rotate(np.arange(first, first + _PLACES) + np.zeros((3, 1), np.int64))
            self._text, at = (first, cos, sin), 0
        return cos[at : at + count], sin[at : at + count]

    def _rotate(self, positions: NDArray[np.integer[Any]]) -> tuple[F32, F32]:
        angles = positions[self._axes].T.astype(np.float32) * self._frequencies
        return np.cos(angles), np.sin(angles)
