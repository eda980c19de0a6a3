"""M-RoPE positions of a whole sequence at once, by transformers' rule: what `runtime.sequence` is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import ImageError
from gog_edge.families.layout import I64, token_count


def text_positions(start: int, count: int) -> I64:
    """M-RoPE positions [3, count] of text: all three axes count on from `start`."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count)).copy()


def image_positions(start: int, rows: int, columns: int, merge: int) -> I64:
    """M-RoPE positions [3, tokens] of an image: time stands still, height and width count on from `start`."""
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
        positions [3, s] and the position of the token that follows; decoding goes on from there, not from s.

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
