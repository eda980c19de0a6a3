"""Pure values that flow through the package: frozen, comparable, free of identity, storage and I/O.

Coordinate frame: a `Region` is always in pixels of the original, upright (EXIF applied) frame; x grows to the
right, y grows downwards, the box is half-open [x0, x1) x [y0, y1). Dialects convert at their own border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Union

from gog_edge.answer_view import AnswerView
from gog_edge.errors import RegionError, UsageError
from gog_edge.serde import NOT_WRITTEN

# In what a policy writes boxes: shares of the image, thousandths of it, pixels as shown to it, pixels of the original.
BoxFrame = Literal["unit", "thousand", "shown", "original"]


@dataclass(frozen=True)
class Region:
    """A box in float pixels of the original upright frame, half-open.

    Raises:
        RegionError: a coordinate is not finite, or the box is empty or inverted.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in self.as_tuple()):
            raise RegionError(f"box {self.as_tuple()} has a coordinate that is not finite")
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise RegionError(f"box {self.as_tuple()} is empty or inverted: x0 < x1 and y0 < y1 are needed")

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return self.width * self.height

    def as_tuple(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1)."""
        return (self.x0, self.y0, self.x1, self.y1)

    def clamp(self, width: int, height: int) -> Region:
        """The part inside a `width` x `height` frame.

        Raises:
            RegionError: nothing of the box lies inside.
        """
        x0, x1 = max(self.x0, 0.0), min(self.x1, float(width))
        y0, y1 = max(self.y0, 0.0), min(self.y1, float(height))
        if x1 <= x0 or y1 <= y0:
            raise RegionError(f"box {self.as_tuple()} lies outside of the {width}x{height} image")
        return Region(x0, y0, x1, y1)

    def pad(self, pixels: float) -> Region:
        """Grown by `pixels` on every side (not clamped)."""
        return Region(self.x0 - pixels, self.y0 - pixels, self.x1 + pixels, self.y1 + pixels)

    def scale(self, sx: float, sy: float) -> Region:
        """Every x times `sx`, every y times `sy`."""
        return Region(self.x0 * sx, self.y0 * sy, self.x1 * sx, self.y1 * sy)

    def intersection(self, other: Region) -> float:
        """Common area in square pixels."""
        w = min(self.x1, other.x1) - max(self.x0, other.x0)
        h = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(w, 0.0) * max(h, 0.0)

    def iou(self, other: Region) -> float:
        """Intersection over union, 0..1."""
        inter = self.intersection(other)
        return inter / (self.area + other.area - inter)


class ActionKind(str, Enum):
    """What a policy can decide to do in one call."""

    ANSWER = "answer"  # finish
    TEXT_SEARCH = "text_search"  # search text with a query
    GLANCE = "glance"  # search with a whole image
    GAZE = "gaze"  # crop a region, search with the crop
    ZOOM = "zoom"  # crop a region, only look at it
    VISIT = "visit"  # read a page
    INVALID = "invalid"  # could not be understood; `text` holds the dialect's reply


@dataclass(frozen=True)
class Action:
    """One decision of the policy.

    `text`: the answer, the query, the page's address or, for INVALID, the error reply of the dialect.
    `region`: GAZE and ZOOM only, in pixels of the original of image `image`.
    `image`: index into the session's image registry (0 is the user's first image).
    `label`: what the policy says that the region shows, or the goal of the call.
    """

    kind: ActionKind
    text: str = ""
    region: Region | None = None
    image: int = 0
    label: str = ""
    limit: int | None = None  # results asked for, where the dialect lets the policy say


@dataclass(frozen=True)
class Turn:
    """One parsed turn of the policy: its reasoning and at least one action (INVALID when nothing could be read)."""

    thought: str
    actions: tuple[Action, ...]
    raw: str


@dataclass(frozen=True)
class Hit:
    """One search result. `score` is comparable within one provider only (cosine for local image search)."""

    title: str
    text: str
    source: str = ""
    score: float | None = None
    entity: str = ""  # the provider's identity for the thing found
    image: str = ""  # path or address of a picture of it; empty when there is none


@dataclass(frozen=True)
class Observation:
    """What came back for one action. `error` is empty on success; `shown` is the registry index of the crop shown."""

    action: Action
    hits: tuple[Hit, ...] = ()
    error: str = ""
    text: str = ""  # a page's text (VISIT), already bounded
    shown: int | None = None
    provider: str = ""
    thumbnails: tuple[int | None, ...] = ()  # registry index of each hit's picture, for dialects that show them


@dataclass(frozen=True)
class Control:
    """Wording of the dialect or the chat template: special tokens inside become control tokens."""

    text: str


@dataclass(frozen=True)
class Text:
    """Text from the user, a file or a search result: encoded with special tokens disabled, always."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image of the session's registry, at this place of the conversation."""

    image: int


Segment = Union[Control, Text, ImagePart]


@dataclass(frozen=True)
class Exchange:
    """An earlier question of a conversation, and what it was answered. `images`: how many of the conversation's images
    came with it; the first exchange has the first ones, and so on.

    Raises:
        UsageError: fewer than no images.
    """

    question: str
    answer: str
    images: int = 0

    def __post_init__(self) -> None:
        if self.images < 0:
            raise UsageError(f"an earlier question is said to have {self.images} images")


@dataclass(frozen=True)
class PixelLimits:
    """How large pictures are shown: smallest and largest area in pixels; 0 means the checkpoint's own.

    `upscale`: the picture counts as that many times larger a side before the rules are applied (policies trained on
    enlarged crops). `scale_first`: the two areas, and `min_side`, bound a step before the processor
    (`crop.scale_between`), whose own rounding to patches then stays within the checkpoint's limits. Only sizes take
    two steps: pixels are resampled once, straight to the grid.

    Raises:
        UsageError: a negative limit, or an upscale that is not above 0 and at most 16.
    """

    min_pixels: int = 0
    max_pixels: int = 0
    upscale: float = 1.0
    scale_first: bool = False
    min_side: int = 0

    def __post_init__(self) -> None:
        if min(self.min_pixels, self.max_pixels, self.min_side) < 0:
            raise UsageError(
                f"pixel limits {self.min_pixels}..{self.max_pixels}, side {self.min_side}: none may be negative"
            )
        if not 0 < self.upscale <= 16:
            raise UsageError(f"upscale is {self.upscale}: above 0, at most 16 is needed")


@dataclass(frozen=True)
class RegisteredImage:
    """Geometry of one image of a session, for dialects: what the policy was shown and where it was cut from.

    `width`, `height`: the original frame's pixels (for a crop: of the frame it was cut from).
    `shown_width`, `shown_height`: pixels as the policy counts them: after smart_resize, or before it where the dialect
    scales pictures first (`PixelLimits.scale_first`).
    `region`: the crop's box in the original frame, or None for a whole image.
    `source`: registry index of the original frame; equal to `index` for a whole image.
    """

    index: int
    width: int
    height: int
    shown_width: int
    shown_height: int
    region: Region | None
    source: int

    @property
    def view(self) -> Region:
        """The part of the original frame that is shown."""
        return self.region or Region(0.0, 0.0, float(self.width), float(self.height))


@dataclass(frozen=True)
class Usage:
    """Counts of one question: tokens and images that were really computed, and those that caches saved."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    image_tokens: int = 0
    reused_tokens: int = 0
    encoded_images: int = 0
    cached_images: int = 0
    searches: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f) - getattr(other, f) for f in self.__dataclass_fields__))


class StopReason(str, Enum):
    """Why the loop ended."""

    ANSWERED = "answered"
    FORCED = "forced"  # a limit was reached and the policy was made to answer
    DEADLINE = "deadline"  # wall time ran out: best answer so far
    CANCELLED = "cancelled"
    EXHAUSTED = "exhausted"  # limits reached and no answer could be obtained


@dataclass(frozen=True)
class Step:
    """One round of the loop: what the policy wrote, what it asked for, what came back (one observation per action)."""

    index: int
    turn: Turn
    observations: tuple[Observation, ...] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0


@dataclass(frozen=True)
class Answer(AnswerView):
    """The result of one question. `text` is empty when there is no answer; `evidence` are the hits that hold it.

    `pictures`: the frame that each image of the session was cut from, by its number in `Action.image`; None where a
    session was loaded without it. They are kept as long as the answer, are no part of its value, and are not written.
    """

    text: str
    stop: StopReason
    steps: tuple[Step, ...] = ()
    evidence: tuple[Hit, ...] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    pictures: tuple[Any, ...] = field(default=(), repr=False, compare=False, metadata=NOT_WRITTEN)


# Events of a running question, in the order in which they happen.


@dataclass(frozen=True)
class NoticeEvent:
    """Something that the user should know before the policy starts: a search that nothing is set up for."""

    text: str


@dataclass(frozen=True)
class TokenEvent:
    """A piece of text that the policy wrote. `forced`: appended by the grammar, without a decoder step."""

    step: int
    text: str
    forced: bool = False


@dataclass(frozen=True)
class TextEvent:
    """A further piece of the answer's text, as soon as it is sure to be one. All pieces of a question, joined, are the
    text of its answer, unless it was cancelled: then `Answer.text` is empty."""

    step: int
    text: str


@dataclass(frozen=True)
class ActionEvent:
    """An action was understood."""

    step: int
    action: Action


@dataclass(frozen=True)
class BoxEvent:
    """A box was closed while the call was still being written: crop encoding and search may start early."""

    step: int
    region: Region
    image: int


@dataclass(frozen=True)
class ObservationEvent:
    """Something came back."""

    step: int
    observation: Observation


@dataclass(frozen=True)
class AnswerEvent:
    """The end of the question; always the last event."""

    answer: Answer


Event = Union[NoticeEvent, TokenEvent, TextEvent, ActionEvent, BoxEvent, ObservationEvent, AnswerEvent]
