"""The bundle's side of the parity gate: one conversation of three turns through the real session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop import crop_patches
from gog_edge.engines.base import Features
from gog_edge.image.frame import Frame
from gog_edge.manifest import Manifest, Preprocessing
from gog_edge.runtime.decoder import PlacedImage
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.vision import VisionPlan
from gog_edge.types import Control, ImagePart, PixelLimits, Region, Segment, Text

F32 = NDArray[np.float32]
CHUNK = 48  # prefill chunk: smaller than an image, so images cross chunk borders
IMAGE_TOKENS = 1024  # images are shown with at most so many tokens
QUESTIONS = ("What is shown here, and what should be searched for?", "Compare the two.", "So what is the answer?")


@dataclass
class BundleTalk:
    """What the bundle saw and did.

    `features`, `patches`, `starts` (the first token): one per plan. `places`: index of every decoded token; `rows`:
    the logits it was taken from. `prefill`: logits [s, V] at every place, computed afresh in chunks.
    """

    plans: list[VisionPlan] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    patches: list[F32] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    places: list[int] = field(default_factory=list)
    rows: list[F32] = field(default_factory=list)
    prefill: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def generated_frames(seed: int) -> list[Frame]:
    """Two pictures of odd sizes with smooth shading, edges and noise; the same for the same seed."""
    rng = np.random.default_rng(seed)
    frames = []
    for width, height in ((333, 217), (101, 164)):
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        waves = rng.uniform(0.01, 0.12, (3, 2))
        picture = np.stack([127 + 90 * np.sin(wx * x + wy * y) for wx, wy in waves], axis=-1)
        for _ in range(6):
            x0, y0 = rng.integers(0, width - 20), rng.integers(0, height - 20)
            picture[y0 : y0 + rng.integers(8, 80), x0 : x0 + rng.integers(8, 80)] = rng.integers(0, 256, 3)
        picture += rng.normal(0, 6, picture.shape)
        frames.append(Frame(np.clip(np.rint(picture), 0, 255).astype(np.uint8), f"generated {width}x{height}"))
    return frames


def pixel_limits(preprocessing: Preprocessing) -> PixelLimits:
    """Limits of every image of the conversation."""
    return PixelLimits(max_pixels=min(IMAGE_TOKENS * preprocessing.factor**2, preprocessing.max_pixels))


def masked_tokens(manifest: Manifest, video_token: object) -> list[int]:
    """Tokens that represent pictures: written by a policy they would mean something else to each side."""
    special = manifest.tokens
    ids = {special.image_pad, special.vision_start, special.vision_end, video_token}
    return sorted(i for i in ids if isinstance(i, int) and 0 <= i < manifest.decoder.vocab)


def converse(model: Model, frames: Sequence[Frame], tokens: int, masked: list[int]) -> BundleTalk:
    """Three turns of `tokens` greedy tokens: the first image; all others and a crop of the first; text only.

    Raises:
        ContextOverflowError: the conversation does not fit the bundle's context.
    """
    talk = BundleTalk()
    session = Session(model)
    limits = pixel_limits(model.manifest.preprocessing)
    first = frames[0]
    inner = Region(0.11 * first.width, 0.09 * first.height, 0.67 * first.width, 0.73 * first.height)
    turns: list[list[tuple[Frame, Region | None]]] = [
        [(first, None)],
        [*((frame, None) for frame in frames[1:]), (first, inner)],
        [],
    ]
    for question, shown in zip(QUESTIONS, turns):
        segments: list[Segment] = [Control("<|im_start|>user\n")]
        for frame, region in shown:
            segments.append(ImagePart(session.add_image(frame, region, limits=limits).index))
            plan = model.vision.plan(frame, region, limits)
            talk.plans.append(plan)
            talk.patches.append(crop_patches(frame, region, plan.grid, model.manifest.preprocessing))
            talk.features.append(model.vision.encode(plan)[0])
        segments += [Text(question), Control("<|im_end|>\n<|im_start|>assistant\n")]
        session.append(segments, reserve=tokens)
        for _ in range(tokens):
            row = session.run()[0].copy()
            talk.rows.append(row)
            talk.places.append(len(session))
            session.extend([_greedy(row, masked)])
        session.append([Control("<|im_end|>\n")])
    talk.tokens = session.tokens.astype(np.int64)
    talk.starts = [span.start for span in session.sequence.spans]
    talk.prefill = _prefill(model, session, talk.features)
    return talk


def _prefill(model: Model, session: Session, features: list[Features]) -> F32:
    length = len(session)
    cache = model.decoder.new_cache(length)
    rows = np.empty((length, model.decoder.vocab), np.float32)
    for at in range(0, length, CHUNK):
        stop = min(at + CHUNK, length)
        placed = []
        for span in session.sequence.spans_between(at, stop):
            begin, end = max(span.start, at), min(span.stop, stop)
            placed.append(PlacedImage(begin - at, begin - span.start, end - begin, features[span.image]))
        where = session.sequence.positions(at, stop)
        count, ids = stop - at, session.tokens[at:stop]
        rows[at:stop] = model.decoder.forward(cache, at, ids, where, placed, last_k=count, read=(0, count))
    return rows


def _greedy(row: F32, masked: list[int]) -> int:
    allowed = row.copy()
    allowed[masked] = -np.inf
    return int(allowed.argmax())
