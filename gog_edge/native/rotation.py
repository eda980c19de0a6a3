"""The rotation of a linear layer's inputs that its weights are stored in (numpy only; used by the exporter).

LinearW8 and LinearW4 with attribute `rotation` turn every row of x by an orthogonal matrix R before they round it
(csrc/hadamard.h). A weight row turned the same way makes the product what it was: (x R^T)(w R^T)^T = x w^T. R is made
of Hadamard transforms after fixed changes of sign, so it takes additions alone, and every number of a turned row is a
little of every number in its block: no column stands out, in activations or in weights, and one scale serves them all
(Ashkboos et al. 2024, arXiv 2404.00456). Signs are changed because a row with a mean would have all of it in one
column, and because two overlapping transforms would undo each other in part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
LEAST = 16
"""Columns in the smallest block."""


def rotation_block(columns: int, most: int) -> int:
    """Columns turned together: the largest power of two up to `columns` and `most`; 0 where that is too few."""
    block = 1 << (min(columns, most).bit_length() - 1) if min(columns, most) > 0 else 0
    return block if block >= LEAST else 0


def rotate(rows: F32, block: int) -> F32:
    """rows [n, columns] turned: blocks of `block` columns, then the last `block` ones if some are left over.

    `block`: a power of two, at most the number of columns; 0: nothing is turned. The result is a new array.
    """
    return _turned(rows, block, back=False)


def rotate_back(rows: F32, block: int) -> F32:
    """The rows that `rotate` made these of, but for rounding."""
    return _turned(rows, block, back=True)


def _turned(rows: F32, block: int, *, back: bool) -> F32:
    turned = np.array(rows, np.float32)
    if block == 0:
        return turned
    columns = rows.shape[1]
    whole = columns // block * block
    ranges = [slice(at, at + block) for at in range(0, whole, block)]
    if whole < columns:
        ranges.append(slice(columns - block, columns))
    factors = _factors(block)
    step = max(1, (1 << 17) // block)  # a block of these rows stays in the cache
    for start in range(0, len(turned), step):
        part = turned[start : start + step]
        for at in reversed(ranges) if back else ranges:
            part[:, at] = _hadamard(part[:, at]) * factors if back else _hadamard(part[:, at] * factors)
    return turned


def _factors(block: int) -> F32:
    """Of each column of a block: its sign, and what makes the transform orthonormal."""
    mixed = np.arange(block, dtype=np.uint32) * np.uint32(2654435761)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(2246822519)
    return np.where((mixed ^ (mixed >> np.uint32(13))) & np.uint32(1), -1, 1).astype(np.float32) * np.float32(
        1 / np.sqrt(block)
    )


def _hadamard(values: F32) -> F32:
    """values [n, block] H, H of 1 and -1; in additions of one fixed order, so every machine gets the same bits."""
    count, block = values.shape
    half = 1
    while half < block:
        pairs = values.reshape(count, block // (2 * half), 2, half)
        values = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    return values.reshape(count, block)
