"""Coordinates of the policy: 0..1000 of the image on a coarse grid, and the sizes at which images are shown."""

from __future__ import annotations

import math

Box = tuple[float, float, float, float]

STEP = 25  # grid of the coordinates the policy writes: one token each
MARGIN = 0.35  # of a grid step, added around the target before rounding outwards
FACTOR = 32  # patch 16 x merge 2
GLANCE_PIXELS = (8192, 110592)  # min, max pixels shown of a whole image: 384 x 288 of a 4:3 frame
GAZE_PIXELS = (8192, 16384)  # of a crop: 128 x 96 of a 4:3 crop


def expert_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The grid box a teacher would write for a target: a little margin, rounded outwards. Pixels in, 0..1000 out."""
    x0, x1 = box[0] * 1000 / width / STEP, box[2] * 1000 / width / STEP
    y0, y1 = box[1] * 1000 / height / STEP, box[3] * 1000 / height / STEP
    low = [max(0, math.floor(v - MARGIN)) for v in (x0, y0)]
    high = [min(1000 // STEP, math.ceil(v + MARGIN)) for v in (x1, y1)]
    return low[0] * STEP, low[1] * STEP, high[0] * STEP, high[1] * STEP


def to_pixels(box: tuple[int, int, int, int], width: int, height: int) -> Box:
    """Pixels of a 0..1000 box."""
    return box[0] * width / 1000, box[1] * height / 1000, box[2] * width / 1000, box[3] * height / 1000


def smart_resize(width: float, height: float, limits: tuple[int, int]) -> tuple[int, int]:
    """Qwen's rule: sides to multiples of ``FACTOR`` (half to even), area within ``limits``. Returns width, height."""
    h, w = max(FACTOR, round(height / FACTOR) * FACTOR), max(FACTOR, round(width / FACTOR) * FACTOR)
    if h * w > limits[1]:
        beta = math.sqrt(height * width / limits[1])
        h = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        w = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif h * w < limits[0]:
        beta = math.sqrt(limits[0] / (height * width))
        h, w = math.ceil(height * beta / FACTOR) * FACTOR, math.ceil(width * beta / FACTOR) * FACTOR
    return int(w), int(h)


def holds(crop: Box, target: Box) -> float:
    """Share of the target's area that lies in the crop."""
    w = max(0.0, min(crop[2], target[2]) - max(crop[0], target[0]))
    h = max(0.0, min(crop[3], target[3]) - max(crop[1], target[1]))
    return w * h / ((target[2] - target[0]) * (target[3] - target[1]))


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def is_hit(crop: Box, target: Box) -> bool:
    """The gaze criterion: at least 90 % of the target inside, at most four times its area."""
    return holds(crop, target) >= 0.9 and area(crop) <= 4.0 * area(target)
