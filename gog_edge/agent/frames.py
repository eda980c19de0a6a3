"""The images of a question, decoded under its deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gog_edge.agent.dispatch import run_in_thread
from gog_edge.agent.request import Images
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.errors import UsageError
from gog_edge.image.frame import Frame, ImageLimits


def open_frames(
    image: Images | None, limits: ImageLimits, budget: Budget = UNLIMITED, *, bgr: bool | None = None
) -> list[Frame]:
    """One image or several, decoded; `bgr` as in `Frame.open`.

    What has to be decoded is decoded in another thread: a decoder can't always be interrupted, but waiting for it can.
    One that is left behind ends at its next block, and its memory counts until then.

    Raises:
        UsageError: there is none. ImageError: one can't be read. CancelledError, DeadlineReached: the budget ended.
    """
    if image is None or (isinstance(image, (list, tuple)) and not image):
        raise UsageError("no image was given: a question needs at least one")
    sources: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]

    def decode() -> list[Frame]:
        return [Frame.open(source, bgr=bgr, limits=limits, budget=budget) for source in sources]

    budget.check()
    if all(isinstance(source, (Frame, np.ndarray)) for source in sources):
        return decode()
    return _elsewhere(decode, budget)


def _elsewhere(decode: Callable[[], list[Frame]], budget: Budget) -> list[Frame]:
    future = run_in_thread(decode, "decode")
    try:
        budget.wait(future)
        found: list[Frame] = future.result()
        return found
    finally:
        del future, decode  # an error's traceback holds this call: with the future in it they would be a circle
