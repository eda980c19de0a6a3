"""How much of a slow search the early start hides: the runtime's own desk, real turns, a provider that sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from gog_edge.bench.ours import LocalSubject
from gog_edge.bench.result import Cell
from gog_edge.bench.subject import Words, picture
from gog_edge.errors import SearchTimeoutError
from gog_edge.runtime.budget import UNLIMITED
from gog_edge.runtime.desk import SearchDesk
from gog_edge.runtime.frame import Frame
from gog_edge.runtime.search.base import IMAGE, BaseProvider, Deadline, ImageQuery
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Hit, Region

LATENCIES = (0.2, 1.0, 3.0)  # seconds that the provider takes
TOKENS, AFTER_BOX = 40, 12  # of a call; of it behind the box: a label and the closing of the call
RESULTS = 3
HITS = tuple(Hit(f"result {n}", "text of a result", f"local:{n}") for n in range(RESULTS))
OURS, PLAIN = "gog-edge", "without early start"


class SleepingProvider(BaseProvider):
    """Answers every image search after a fixed time, as a web service far away does."""

    name = "sleeping"
    kinds = frozenset({IMAGE})

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        left = deadline.timeout(self.seconds)
        threading.Event().wait(left)
        if left is not None and left < self.seconds:
            raise SearchTimeoutError(f"{self.name}: the deadline has passed")
        return list(HITS[:k])


def search_cells(subject: LocalSubject, repeats: int, latencies: Sequence[float] = LATENCIES) -> Iterator[Cell]:
    """Waiting for a search at the end of a call: started early, and started when it is asked for.

    Glance: the search with the whole image starts with the question. Gaze: the search with the crop starts when its
    box is closed, `AFTER_BOX` tokens before the end of the call.
    """
    for seconds in latencies:
        desk = SearchDesk([SleepingProvider(seconds)], 10 * seconds + 10, UNLIMITED, Trace())
        for kind in ("glance", "gaze"):
            waits: dict[str, list[float]] = {OURS: [], PLAIN: []}
            ahead: list[float] = []
            for run in range(repeats):
                query, seconds_left = _call(subject, desk, kind, run)
                ahead.append(seconds_left)
                waits[OURS].append(_wait(desk, query))
                waits[PLAIN].append(_wait(desk, query))  # the early one is used up: this starts anew
            yield Cell("search", OURS, f"{kind}: start to end of the call", "s", tuple(ahead), x=seconds)
            for name, samples in waits.items():
                yield Cell("search", name, f"wait for {kind}", "s", tuple(samples), x=seconds)
            hidden = tuple(100 * (1 - a / b) for a, b in zip(waits[OURS], waits[PLAIN]))
            yield Cell("search", OURS, f"{kind} hidden", "%", hidden, lower_is_better=False, x=seconds)


def _call(subject: LocalSubject, desk: SearchDesk, kind: str, run: int) -> tuple[ImageQuery, float]:
    """Let the policy write a call, with its search started as early as the agent can.

    Returns the query of that search, and the time from its start to the end of the call: what can be hidden.
    """
    subject.reset()
    scene = picture(1024, 768, seed=run)
    if kind == "glance":
        query = ImageQuery(Frame.open(scene.pixels))
        start = time.perf_counter()
        desk.image_early(query, RESULTS)
        subject.turn([scene, Words(60, run)], TOKENS)
        return query, time.perf_counter() - start
    subject.turn([scene, Words(60, run)], TOKENS - AFTER_BOX)
    query = ImageQuery(subject.session.frame(0), Region(256, 192, 704, 528))
    start = time.perf_counter()
    desk.image_early(query, RESULTS)
    subject.turn([], AFTER_BOX)
    return query, time.perf_counter() - start


def _wait(desk: SearchDesk, query: ImageQuery) -> float:
    start = time.perf_counter()
    desk.wait(desk.image(query, RESULTS), UNLIMITED)
    return time.perf_counter() - start
