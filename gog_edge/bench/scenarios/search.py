"""How much of a slow search is hidden: the runtime's own dispatcher and tools, real turns, a provider that sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gog_edge.agent.dispatch import SearchDispatcher
from gog_edge.agent.loader import bundle_dialect
from gog_edge.agent.options import NO_PREFETCH, Prefetch
from gog_edge.agent.prefetch import ReadAhead
from gog_edge.agent.request import AskRequest
from gog_edge.agent.tools import ToolExecutor
from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.result import Cell
from gog_edge.bench.subject import Words, picture
from gog_edge.deadline import UNLIMITED
from gog_edge.errors import SearchTimeoutError
from gog_edge.image.frame import Frame
from gog_edge.runtime.sequence import Mark
from gog_edge.runtime.telemetry import Trace
from gog_edge.search.base import IMAGE, BaseProvider, Deadline, ImageQuery
from gog_edge.types import Action, ActionKind, Hit, Observation, Region, Segment, Turn

LATENCIES = (0.2, 1.0, 3.0)  # seconds that the provider takes
TOKENS, AFTER_BOX = 40, 12  # of a call; of it behind the box: a label and the closing of the call
RESULTS = 3
HITS = tuple(Hit(f"result {n}", "text of a result", f"local:{n}") for n in range(RESULTS))
GAZE = Action(ActionKind.GAZE, region=Region(256, 192, 704, 528))
OURS, LATE, PLAIN = "gog-edge", "without reading ahead", "without early start"
VARIANTS = ((OURS, Prefetch()), (LATE, Prefetch(observation=False)), (PLAIN, NO_PREFETCH))


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
    """What a search costs at the end of a call: started early, and only when it is asked for.

    Glance: the search with the whole image starts with the question; measured is how long the policy waits for it.
    Gaze: see `gaze_cells`.
    """
    for seconds in latencies:
        yield from _glance_cells(subject, repeats, seconds)
    yield from gaze_cells(subject, repeats, latencies)


def gaze_cells(subject: LocalSubject, repeats: int, latencies: Sequence[float]) -> Iterator[Cell]:
    """The time from the closed box, `AFTER_BOX` tokens before the end of the call, until the results are read.

    Early, search and encoding start with the closed box (and take their share of the processor from the policy, which
    writes on), and the crop is read while the search runs. Of a provider's time is hidden what it does not add to
    that of one that answers at once.
    """
    found: dict[tuple[str, float], list[float]] = {}
    ahead: dict[float, list[float]] = {}
    for run in range(repeats):
        gaze = _Gaze(subject, run)
        found.setdefault((OURS, 0.0), []).append(gaze.measure(0.0, Prefetch())[1])
        for seconds in latencies:
            for name, prefetch in VARIANTS:
                left, read = gaze.measure(seconds, prefetch)
                found.setdefault((name, seconds), []).append(read)
                if name == OURS:
                    ahead.setdefault(seconds, []).append(left)
    for (name, seconds), samples in found.items():
        yield Cell("search", name, "gaze: closed box to results read", "s", tuple(samples), x=seconds)
    for seconds in latencies:
        yield Cell("search", OURS, "gaze: start to end of the call", "s", tuple(ahead[seconds]), x=seconds)
        added = [slow - at_once for slow, at_once in zip(found[OURS, seconds], found[OURS, 0.0])]
        hidden = tuple(100 * (1 - a / seconds) for a in added)
        yield Cell("search", OURS, "gaze hidden", "%", hidden, lower_is_better=False, x=seconds)


def _glance_cells(subject: LocalSubject, repeats: int, seconds: float) -> Iterator[Cell]:
    dispatcher = _dispatcher(seconds)
    waits: dict[str, list[float]] = {OURS: [], PLAIN: []}
    ahead: list[float] = []
    for run in range(repeats):
        subject.reset()
        scene = picture(1024, 768, seed=run)
        query = ImageQuery(Frame.open(scene.pixels))
        start = time.perf_counter()
        dispatcher.image_early(query, RESULTS)
        subject.turn([scene, Words(60, run)], TOKENS)
        ahead.append(time.perf_counter() - start)
        waits[OURS].append(_wait(dispatcher, query))
        waits[PLAIN].append(_wait(dispatcher, query))  # the early one is used up: this starts again
    yield Cell("search", OURS, "glance: start to end of the call", "s", tuple(ahead), x=seconds)
    for name, samples in waits.items():
        yield Cell("search", name, "wait for glance", "s", tuple(samples), x=seconds)
    hidden = tuple(100 * (1 - a / b) for a, b in zip(waits[OURS], waits[PLAIN]))
    yield Cell("search", OURS, "glance hidden", "%", hidden, lower_is_better=False, x=seconds)


def _wait(dispatcher: SearchDispatcher, query: ImageQuery) -> float:
    start = time.perf_counter()
    dispatcher.wait(dispatcher.image(query, RESULTS), UNLIMITED)
    return time.perf_counter() - start


def _dispatcher(seconds: float) -> SearchDispatcher:
    return SearchDispatcher([SleepingProvider(seconds)], 10 * seconds + 10, UNLIMITED, Trace())


class _Gaze:
    """A call whose box was just closed, to be ended any number of times. In the wording of dialect `gog`, which shows
    the crop before its results."""

    def __init__(self, subject: LocalSubject, run: int) -> None:
        self._subject = subject
        self._dialect = bundle_dialect(subject.bundle, "gog")
        subject.reset()
        subject.turn([picture(1024, 768, seed=run), Words(60, run)], TOKENS - AFTER_BOX)
        self._closed: Mark = subject.session.mark()

    def measure(self, seconds: float, prefetch: Prefetch) -> tuple[float, float]:
        """(from the closed box to the end of the call, from the closed box until the results are read) in seconds."""
        subject, session = self._subject, self._subject.session
        session.rewind(self._closed)
        subject.model.vision.cache.clear()
        options = replace(subject.options, prefetch=prefetch)
        request = AskRequest(None, "What is it?")
        tools = ToolExecutor(session, self._dialect, _dispatcher(seconds), options, request, UNLIMITED, 1)
        start = time.perf_counter()
        if prefetch.crop and GAZE.region is not None:
            tools.expect_crop(GAZE.region, GAZE.image)
        subject.turn([], AFTER_BOX)
        called, behind = time.perf_counter(), len(session)
        ahead = ReadAhead(session, self._wording, behind, options.answer_reserve) if prefetch.observation else None
        observations = tools.perform([GAZE], UNLIMITED, ahead)
        session.append(self._wording(observations), behind=behind)
        session.run()
        read = time.perf_counter()
        tools.finish()
        return called - start, read - start

    def _wording(self, observations: Sequence[Observation]) -> list[Segment]:
        return self._dialect.observe(Turn("", (GAZE,), ""), observations, images=self._subject.session.images)
