"""Rescale and normalise as one subtraction and one multiplication of the 8-bit value.

(v * rescale - mean) / std = (v - mean / rescale) * (rescale / std), in float32.  A subtraction followed by a
multiplication can not be contracted into one rounding, so every build of the kernel gives the same bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gog_edge.manifest import Preprocessing


@dataclass(frozen=True, eq=False)
class Normal:
    """`offset` and `scale`: [3] float32, in 8-bit steps, read-only."""

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]

    @property
    def values(self) -> NDArray[np.float32]:
        """[6] float32: the three offsets, then the three scales."""
        return np.concatenate([self.offset, self.scale])


@functools.lru_cache(maxsize=16)
def normal_of(preprocessing: Preprocessing) -> Normal:
    """What `preprocessing` does to an 8-bit value."""
    mean = np.asarray(preprocessing.image_mean, dtype=np.float64)
    std = np.asarray(preprocessing.image_std, dtype=np.float64)
    offset = (mean / preprocessing.rescale_factor).astype(np.float32)
    scale = (preprocessing.rescale_factor / std).astype(np.float32)
    offset.flags.writeable = scale.flags.writeable = False
    return Normal(offset, scale)
