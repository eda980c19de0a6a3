"""Frames and preprocessing parameters for the crop tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gog_edge.image.frame import Frame
from gog_edge.manifest import Preprocessing

QWEN25 = Preprocessing(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=56 * 56,
    max_pixels=448 * 336,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
QWEN3 = Preprocessing(
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=4 * 32 * 32,
    max_pixels=448 * 336,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
BOTH = (QWEN25, QWEN3)


def noise(height: int, width: int, seed: int = 0) -> Frame:
    """Every pixel at random: the hardest picture for a resampler, it clips between the passes."""
    rng = np.random.default_rng([seed, height, width])
    return Frame(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def scene(height: int, width: int, seed: int = 0) -> Frame:
    """Waves, edges and sensor noise, inside the range: what photographs are made of."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[0:height, 0:width]
    planes = [110 + 45 * np.sin(x / 17 + c) + 35 * np.cos(y / 9 - c) + 20 * ((x // 13 + y // 7) % 2) for c in range(3)]
    values = np.stack(planes, axis=-1) + rng.normal(0, 3, (height, width, 3))
    return Frame(np.clip(values, 0, 255).astype(np.uint8))


def eight_bit(patches: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float64]:
    """The resized pixel values behind normalised patches [n, 3 * p * p], not rounded."""
    side = preprocessing.patch_size**2
    mean = np.repeat(np.asarray(preprocessing.image_mean), side)
    std = np.repeat(np.asarray(preprocessing.image_std), side)
    return (patches.astype(np.float64) * std + mean) / preprocessing.rescale_factor
