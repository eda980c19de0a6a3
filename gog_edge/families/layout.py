"""Where patches lie and what turns with what: index and rotary arithmetic that families choose from, in numpy.

A vision *grid* is (rows, columns) of patches of one resized image; its patches lie in merge-block order (rows/m,
columns/m, m, m), so that each run of m*m rows becomes one image token. Decoder positions are M-RoPE triples (time,
height, width).

All frequencies are float32, as in transformers, so that angles of far positions round alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import ImageError
from gog_edge.manifest import DecoderSpec, VisionSpec

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
Inputs = dict[str, NDArray[Any]]


def token_count(rows: int, columns: int, merge: int) -> int:
    """Image tokens of a grid of `rows` x `columns` patches.

    Raises:
        ImageError: the grid is empty or not a multiple of the merge size.
    """
    if rows < merge or columns < merge or rows % merge or columns % merge:
        raise ImageError(f"a patch grid of {rows}x{columns} is not a positive multiple of the merge size {merge}")
    return (rows // merge) * (columns // merge)


def merge_order(rows: int, columns: int, merge: int) -> tuple[I64, I64]:
    """(row, column) in the grid of every patch in merge-block order, each [rows*columns].

    Raises:
        ImageError: the grid is not a multiple of the merge size.
    """
    token_count(rows, columns, merge)
    grid = np.arange(rows * columns, dtype=np.int64).reshape(rows // merge, merge, columns // merge, merge)
    order = grid.transpose(0, 2, 1, 3).reshape(-1)
    return order // columns, order % columns


def inverse_frequencies(dim: int, theta: float) -> F32:
    """theta ** (-2i/dim) for i in [0, dim/2), float32 [dim/2] (Su et al. 2021, eq. 15)."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies: F32 = (np.float32(1.0) / np.power(np.float32(theta), exponent)).astype(np.float32)
    return frequencies


def vision_rope(rows: int, columns: int, merge: int, head_dim: int, theta: float = 10000.0) -> tuple[F32, F32]:
    """cos and sin [n, head_dim/2]: the first quarter of a head turns with the row, the second with the column."""
    frequencies = inverse_frequencies(head_dim // 2, theta)
    row, column = merge_order(rows, columns, merge)
    angles = np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _taps(index: I64, size: int, side: int) -> tuple[I64, I64, F32]:
    """Lower and upper table index of each position on an axis and the upper one's weight, corners aligned."""
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(source)
    upper_weight = (source - low).astype(np.float32)
    low_index = low.astype(np.int64)
    return low_index, np.minimum(low_index + 1, side - 1), upper_weight


def position_corners(rows: int, columns: int, merge: int, side: int) -> tuple[I64, F32]:
    """Bilinear corners of the learned `side` x `side` position table for every patch.

    Corners are aligned: the grid's first and last row meet the table's. Returns indices into the flattened
    table and weights, both [4, n], in the order (low, low), (low, high), (high, low), (high, high) of
    (row, column); the weights of a patch sum to 1.
    """
    row, column = merge_order(rows, columns, merge)
    r0, r1, wr = _taps(row, rows, side)
    c0, c1, wc = _taps(column, columns, side)
    index = np.stack([r0 * side + c0, r0 * side + c1, r1 * side + c0, r1 * side + c1])
    one = np.float32(1)
    weight = np.stack([(one - wr) * (one - wc), (one - wr) * wc, wr * (one - wc), wr * wc])
    return index, weight.astype(np.float32)


@dataclass(frozen=True)
class Windows:
    """Windows of local attention over rows in merge-block order; W windows, L = rows of the longest one.

    gather [W, L] int64: row of each slot (padding slots point at row 0).
    mask [W, L] int32: 1 for a real slot, 0 for padding (padding is at the end of a window).
    scatter [n] int64: slot of each row in the flattened [W*L].
    """

    gather: I64
    mask: I32
    scatter: I64


def windows(rows: int, columns: int, merge: int, side: int) -> Windows:
    """Cut the merged grid into squares of `side` x `side` tokens, cut short at the right and lower border."""
    token_count(rows, columns, merge)
    if side < 1:
        raise ImageError(f"a window of {side} tokens has no rows")
    unit = merge * merge
    tokens = np.arange((rows // merge) * (columns // merge), dtype=np.int64).reshape(rows // merge, columns // merge)
    blocks = [
        tokens[y : y + side, x : x + side].reshape(-1)
        for y in range(0, tokens.shape[0], side)
        for x in range(0, tokens.shape[1], side)
    ]
    longest = max(block.size for block in blocks) * unit
    gather = np.zeros((len(blocks), longest), np.int64)
    mask = np.zeros((len(blocks), longest), np.int32)
    scatter = np.empty(tokens.size * unit, np.int64)
    for i, block in enumerate(blocks):
        patch_rows = (block[:, None] * unit + np.arange(unit)).reshape(-1)
        gather[i, : patch_rows.size] = patch_rows
        mask[i, : patch_rows.size] = 1
        scatter[patch_rows] = i * longest + np.arange(patch_rows.size)
    return Windows(gather, mask, scatter)


def rotary_inputs(vision: VisionSpec, merge: int, rows: int, columns: int) -> Inputs:
    """The rotary inputs of a tower: rope_cos, rope_sin [n, head_dim/2]."""
    cos, sin = vision_rope(rows, columns, merge, vision.head_dim, vision.rope_theta)
    return {"rope_cos": cos, "rope_sin": sin}


def mrope(decoder: DecoderSpec) -> tuple[F32, I64]:
    """Frequency and axis (0 time, 1 height, 2 width) of each pair of a head's dimensions, both [head_dim/2].

    Chunked: the first mrope_section[0] frequencies follow time, then height, then width.
    Interleaved: t h w t h w …; time takes what the two others leave.
    """
    frequencies = inverse_frequencies(decoder.head_dim, decoder.rope_theta)
    section = decoder.mrope_section
    if not decoder.mrope_interleaved:
        return frequencies, np.repeat(np.arange(3, dtype=np.int64), section)
    axes = np.zeros(sum(section), np.int64)
    for axis in (1, 2):
        axes[axis : section[axis] * 3 : 3] = axis
    return frequencies, axes
