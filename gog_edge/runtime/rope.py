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
from gog_edge.errors import ImageError
from gog_edge.families.layout import F32, I64, token_count
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


def text_positions(start: int, count: int) -> I64:
    """M-RoPE positions [3, count] of text: all three axes count on from `start`."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count)).copy()


def image_positions(start: int, rows: int, columns: int, merge: int) -> I64:
    """M-RoPE positions [3, tokens] of an image: time stays the same, height and width count on from `start`."""
    token_count(rows, columns, merge)
    grid = np.indices((1, rows // merge, columns // merge), dtype=np.int64).reshape(3, -1)
    return grid + start


def next_position(start: int, rows: int, columns: int, merge: int) -> int:
    """First position after an image that began at `start`: one more than the greatest position in it."""
    return start + max(rows, columns) // merge


def sequence_positions(
    tokens: NDArray[np.integer[Any]], image_pad: int, grids: list[tuple[int, int]], merge: int, start: int = 0
) -> tuple[I64, int]:
    """M-RoPE positions of a token sequence with images.

    Args:
        tokens: ids [s]; every run of `image_pad` holds one or more whole images.
        grids: (rows, columns) in patches of each image, in order.
        start: position of the first token: 0, or what an earlier call returned.

    Returns:
        positions [3, s] and the position of the token that follows; decoding continues from there, not from s.

    Raises:
        ImageError: the image tokens do not match the grids.
    """
    pads = np.flatnonzero(np.asarray(tokens) == image_pad)
    wanted = sum(token_count(r, c, merge) for r, c in grids)
    if pads.size != wanted:
        raise ImageError(f"the sequence has {pads.size} image tokens, its {len(grids)} image grids need {wanted}")
    parts: list[I64] = []
    at, position = 0, start
    pad_index = 0
    for rows, columns in grids:
        count = token_count(rows, columns, merge)
        first = int(pads[pad_index])
        if int(pads[pad_index + count - 1]) != first + count - 1:
            raise ImageError(f"the {count} tokens of a {rows}x{columns} grid are not contiguous (from token {first})")
        parts.append(text_positions(position, first - at))
        position += first - at
        parts.append(image_positions(position, rows, columns, merge))
        position = next_position(position, rows, columns, merge)
        at = first + count
        pad_index += count
    rest = len(tokens) - at
    parts.append(text_positions(position, rest))
    return np.concatenate(parts, axis=1), position + rest
