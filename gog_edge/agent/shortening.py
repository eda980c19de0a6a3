"""Results that do not fit into the context, by a stated rule: nothing is cut silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gog_edge.types import Observation

_NO_ROOM = "the results do not fit into the context"


def shorter_and_shorter(observations: Sequence[Observation]) -> Iterator[Sequence[Observation]]:
    """The observations; then the best result of each; then lines that say that there is no room."""
    yield observations
    yield [replace(o, hits=o.hits[:1], text=o.text[:500], thumbnails=()) for o in observations]
    yield [replace(o, hits=(), text="", shown=None, thumbnails=(), error=o.error or _NO_ROOM) for o in observations]
