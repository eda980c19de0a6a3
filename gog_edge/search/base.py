"""What the agent knows of searching: a provider Protocol, its queries, a deadline, and the embedder Protocol.

Providers are synchronous and thread-safe: the agent calls them from a small thread pool and waits with a deadline.
A provider raises `SearchError` or its `SearchTimeoutError` and nothing else; the agent turns either into the
dialect's error observation and the loop continues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import FOREVER_S, SYSTEM, Clock
from gog_edge.errors import SearchError, SearchTimeoutError, UsageError
from gog_edge.types import Hit, Region

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

TEXT: Final = "text"
IMAGE: Final = "image"
PAGE: Final = "page"
PICTURE: Final = "picture"  # the picture behind the address of a result, for dialects that show them

Cut = Literal["gap", "mixture", "none"]
"""How many results a local index shows: up to where scores fall off (`rank.dynamic_count`), those that belong together
(`rank.mixture_count`), or as many as were asked for."""


def checked_cut(value: str) -> Cut:
    """`value` as a rule.

    Raises:
        UsageError: it is none.
    """
    if value not in get_args(Cut):
        raise UsageError(f"cut is {value!r}: it must be one of {', '.join(get_args(Cut))}")
    return cast(Cut, value)


class Deadline:
    """A point of a clock: of the question's, where one searches for a question. Immutable; shared between threads."""

    __slots__ = ("_at", "clock")

    def __init__(self, at: float = math.inf, clock: Clock = SYSTEM) -> None:
        """`at`: seconds of `clock`; infinity means that there is no deadline."""
        self._at, self.clock = at, clock

    @classmethod
    def after(cls, seconds: float | None, clock: Clock = SYSTEM) -> Deadline:
        """`seconds` from now; None, or more than `FOREVER_S`, means never."""
        return cls(math.inf if seconds is None or seconds > FOREVER_S else clock.now() + seconds, clock)

    @classmethod
    def never(cls) -> Deadline:
        return cls()

    def remaining(self) -> float:
        """Seconds left, never negative, possibly infinite."""
        return max(self._at - self.clock.now(), 0.0)

    @property
    def expired(self) -> bool:
        return self.clock.now() >= self._at

    def within(self, seconds: float | None) -> Deadline:
        """The earlier of this deadline and `seconds` from now."""
        if seconds is None or seconds > FOREVER_S:
            return self
        return Deadline(min(self._at, self.clock.now() + seconds), self.clock)

    def timeout(self, cap: float | None = None) -> float | None:
        """Seconds to hand to a blocking call: at most `cap`; None when neither limits it."""
        left = min(self.remaining(), math.inf if cap is None else cap)
        return None if math.isinf(left) else left

    def check(self, what: str) -> None:
        """Raise when the time is over.

        Raises:
            SearchTimeoutError: the deadline has passed; `what` names what was being done.
        """
        if self.expired:
            raise SearchTimeoutError(f"{what}: the deadline has passed")

    def __repr__(self) -> str:
        return f"Deadline({self.remaining():.3f} s left)"


@dataclass(frozen=True)
class ImageQuery:
    """A search with a picture: the whole frame (glance) or a region of it (gaze).

    `region`: pixels of the original upright frame; None for the whole frame.
    `label`: what the policy says that the region shows; it joins the ranking where the provider can use text.
    `url`: public address of the WHOLE frame where there is one; web providers that only take addresses use it.
    `key`: the data set's id of the question, for replaying caches that are keyed by it.
    """

    frame: Frame
    region: Region | None = None
    label: str = ""
    url: str = ""
    key: str = ""


@dataclass(frozen=True)
class Page:
    """A page that was read: plain text (bounded), and where it came from after redirects."""

    url: str
    title: str
    text: str
    truncated: bool = False


@runtime_checkable
class SearchProvider(Protocol):
    """One source of results. `kinds`: which of "text", "image", "page" and "picture" it can do; the others raise
    SearchError."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> frozenset[str]: ...

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        """At most `k` hits, best first.

        Raises:
            SearchError: the search failed.
            SearchTimeoutError: it took longer than the deadline.
        """
        ...

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        """At most `k` hits, best first. Raises as `search_text`."""
        ...

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        """The page's text; with a `goal`, the passages that match it. Raises as `search_text`."""
        ...

    def read_image(self, url: str, *, deadline: Deadline) -> Frame:
        """The picture at an address that a result gave. Raises as `search_text`."""
        ...

    def close(self) -> None:
        """Release connections and files. Idempotent."""
        ...


class BaseProvider:
    """Refuses every kind of search in one clear line; a provider overrides what it can do."""

    name: str = "provider"
    kinds: frozenset[str] = frozenset()
    early: bool = True  # image searches may start before the policy asks for them; not where every search is paid for

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        raise SearchError(f"provider {self.name!r} can't search text (it can: {self._can()})")

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        raise SearchError(f"provider {self.name!r} can't search with an image (it can: {self._can()})")

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        raise SearchError(f"provider {self.name!r} can't read pages (it can: {self._can()})")

    def read_image(self, url: str, *, deadline: Deadline) -> Frame:
        raise SearchError(f"provider {self.name!r} can't get pictures (it can: {self._can()})")

    def close(self) -> None:
        """Nothing is held."""

    def _can(self) -> str:
        return ", ".join(sorted(self.kinds)) or "nothing"


@runtime_checkable
class Embedder(Protocol):
    """Turns a frame, or a region of it, into one L2-normalised vector.

    `fingerprint` identifies weights and preprocessing: vectors of different fingerprints are never compared.
    """

    @property
    def fingerprint(self) -> str: ...

    def embed(self, frame: Frame, region: Region | None = None) -> NDArray[np.float32]:
        """[d] float32 with unit length; `region` in pixels of the original upright frame."""
        ...
