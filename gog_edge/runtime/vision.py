"""From a region of a frame to features for the decoder, and to one vector for search: one tower, two jobs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge import families
from gog_edge.bundle import Bundle
from gog_edge.crop import Grid, crop_patches, pixel_box, region_grid, scale_between
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import CutsCrops, Features, FixedImages, VisionRunner
from gog_edge.image.frame import Frame
from gog_edge.manifest import Manifest, VisionSpec
from gog_edge.runtime.feature_cache import FeatureCache, FeatureKey
from gog_edge.runtime.telemetry import NO_TRACE, Trace
from gog_edge.types import PixelLimits, Region, RegisteredImage


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


@dataclass(frozen=True)
class VisionPlan:
    """One image as the policy will see it: what is cut, to which grid, and how many tokens that is."""

    frame: Frame
    region: Region | None
    grid: Grid
    tokens: int
    rows: int  # of merged tokens
    columns: int
    key: FeatureKey
    shown_width: int
    shown_height: int

    def registered(self, index: int, source: int) -> RegisteredImage:
        """The geometry as dialects see it, at registry place `index`."""
        frame = self.frame
        return RegisteredImage(
            index, frame.width, frame.height, self.shown_width, self.shown_height, self.region, source
        )


def _handed(limits: PixelLimits, width: int, height: int) -> tuple[int, int]:
    """(width, height) at which the checkpoint's processor is handed a picture of `width` x `height` pixels."""
    if limits.upscale != 1:
        width, height = max(round(width * limits.upscale), 1), max(round(height * limits.upscale), 1)
    if not limits.scale_first:
        return width, height
    low = min(limits.min_pixels, limits.max_pixels or limits.min_pixels)
    return scale_between(width, height, min_pixels=low, max_pixels=limits.max_pixels, min_side=limits.min_side)


class VisionEncoder:
    """The vision tower with its cache. Thread-safe."""

    def __init__(self, bundle: Bundle, runner: VisionRunner, cache: FeatureCache) -> None:
        self._manifest = bundle.manifest
        self._runner = runner
        self._crop = runner.crop_patches if isinstance(runner, CutsCrops) else crop_patches
        patch = self._manifest.preprocessing.patch_size
        self._most = runner.max_patches * patch**2 if isinstance(runner, FixedImages) else sys.maxsize
        self.cache = cache
        self.fingerprint = bundle.vision_fingerprint

    def plan(self, frame: Frame, region: Region | None = None, limits: PixelLimits | None = None) -> VisionPlan:
        """How `region` of `frame` (None: everything) will be shown. Costs nothing but the frame's digest.

        Limits that contradict each other (or the checkpoint's other one) are widened: the largest area wins. No limit
        goes beyond what the engine was built for.

        Raises:
            RegionError: nothing of the region lies inside the frame, or it is too thin.
            ImageError: the frame is too thin.
        """
        pre, limits = self._manifest.preprocessing, limits or PixelLimits()
        bounds = (0, 0) if limits.scale_first else (limits.min_pixels, limits.max_pixels)
        high = min(bounds[1] or pre.max_pixels, self._most)
        low = min(bounds[0] or pre.min_pixels, high)
        grid = region_grid(region, frame.width, frame.height, pre, min_pixels=low, max_pixels=high)
        box = pixel_box(region, frame.width, frame.height)
        handed = _handed(limits, box.width, box.height)
        if handed != (box.width, box.height):
            grid = Grid.fit(*handed, pre, min_pixels=low, max_pixels=high)
        return self.plan_grid(frame, region, grid, handed if limits.scale_first else None)

    def plan_grid(
        self, frame: Frame, region: Region | None, grid: Grid, shown: tuple[int, int] | None = None
    ) -> VisionPlan:
        """The plan for a grid that is already decided (a saved session); `shown`: (width, height) in which the policy
        counts pixels, None for those of the grid.

        Raises:
            RegionError: nothing of the region lies inside the frame.
        """
        pre = self._manifest.preprocessing
        box = pixel_box(region, frame.width, frame.height)
        height, width = grid.pixels(pre.patch_size) if shown is None else shown[::-1]
        key = FeatureKey(frame.digest, (box.x0, box.y0, box.x1, box.y1), (grid.rows, grid.columns))
        merge = pre.merge_size
        return VisionPlan(
            frame, region, grid, grid.tokens(merge), grid.rows // merge, grid.columns // merge, key, width, height
        )

    def encode(
        self,
        plan: VisionPlan,
        budget: Budget = UNLIMITED,
        trace: Trace = NO_TRACE,
        own: Mapping[FeatureKey, Features] | None = None,
    ) -> tuple[Features, bool]:
        """(features, whether they were there already).

        Args:
            own: features that a session brought along; they are for that session alone and never enter the cache.

        Raises:
            EngineError: the engine failed.
            CancelledError, DeadlineReached: the budget ended.
        """

        def compute() -> Features:
            with trace.span("crop", tokens=plan.tokens):
                patches = self._crop(plan.frame, plan.region, plan.grid, self._manifest.preprocessing)
            with trace.span("encode", tokens=plan.tokens):
                inputs = vision_inputs(self._manifest, plan.grid.rows, plan.grid.columns)
                inputs["patches"] = patches
                return self._runner.run(inputs, budget)

        return (own[plan.key], True) if own and plan.key in own else self.cache.get(plan.key, compute, budget)


class VisionEmbedder:
    """The policy's tower as the encoder of a local index: unit-length mean of the merged features.

    `fingerprint` names the tower and the pixel limits: vectors made with other limits are not compared.
    """

    def __init__(self, encoder: VisionEncoder, limits: PixelLimits | None = None) -> None:
        self._encoder = encoder
        self.limits = limits or PixelLimits()
        self.fingerprint = f"{encoder.fingerprint}:{self.limits.min_pixels}-{self.limits.max_pixels}"

    def plan(self, frame: Frame, region: Region | None = None) -> VisionPlan:
        """What `embed` encodes; equal keys share one run of the tower with what the policy sees."""
        return self._encoder.plan(frame, region, self.limits)

    def embed(self, frame: Frame, region: Region | None = None) -> NDArray[np.float32]:
        """[H] float32 of unit length; `region` in pixels of the frame.

        Raises:
            RegionError, ImageError: the region or frame can't be encoded.
            EngineError: the engine failed.
        """
        features, _ = self._encoder.encode(self.plan(frame, region))
        mean = features.main.mean(axis=0, dtype=np.float64)
        norm = float(np.linalg.norm(mean))
        vector: NDArray[np.float32] = (mean / norm if norm > 0 else mean).astype(np.float32)
        return vector
