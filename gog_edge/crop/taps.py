"""Weights of Pillow's antialiased bicubic resize, in its 8-bit fixed point: what the CUDA kernel is given.

The CPU kernel makes the same table in C++ (csrc/crop_taps.h), where a new box costs a tenth of the time.

Follows `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's src/libImaging/Resample.c operation by
operation (double precision, the same order of additions), so the integers are Pillow's integers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION_BITS = 22
"""Fractional bits of a weight: 32 less 8 for the pixel and 2 for the overshoot of the cubic."""

_SUPPORT = 2.0  # half width of the cubic, in output pixels
_A = -0.5  # Pillow's cubic; OpenCV and torch without antialias take -0.75


@dataclass(frozen=True, eq=False)
class Taps:
    """Output i of an axis is the sum over j < count[i] of weight[i, j] * input[start[i] + j], shifted right by 22.

    `start`, `count`: [out] int32; `weight`: [out, widest] int32, zero beyond `count`. Read-only.
    """

    start: NDArray[np.int32]
    count: NDArray[np.int32]
    weight: NDArray[np.int32]

    @property
    def stride(self) -> int:
        """Weights stored per output."""
        return int(self.weight.shape[1])


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * _A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@functools.lru_cache(maxsize=256)
def bicubic_taps(size_in: int, size_out: int) -> Taps:
    """Weights that resize an axis from `size_in` to `size_out` pixels, both at least 1."""
    scale = size_in / size_out
    spread = max(scale, 1.0)  # downscaling widens the filter: that is the antialiasing
    support = _SUPPORT * spread
    centre = (np.arange(size_out) + 0.5) * scale
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int64), size_in)
    count = stop - start
    j = np.arange(int(count.max()))
    weight = _cubic(((j + start[:, None]) - centre[:, None] + 0.5) * (1.0 / spread))
    weight[j >= count[:, None]] = 0.0
    weight /= np.cumsum(weight, axis=1)[:, -1:]  # cumsum adds one after the other, as the C loop does
    fixed = weight * (1 << PRECISION_BITS)
    rounded = np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5))
    tables = [np.ascontiguousarray(a, dtype=np.int32) for a in (start, count, rounded)]
    for table in tables:
        table.flags.writeable = False
    return Taps(*tables)
