"""Executing what the policy decided: searches in parallel, crops, pages; counting what the dialect allows.

Everything that can go wrong becomes an observation in the dialect's words. Images are registered in the order of
the actions, one observation after the other, so that a session does not depend on which was faster.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from gog_edge.agent.dispatch import Outcome, SearchDispatcher, run_in_thread
from gog_edge.agent.options import RunOptions
from gog_edge.agent.picture_limits import crop_limits
from gog_edge.agent.prefetch import ReadAhead
from gog_edge.agent.request import AskRequest
from gog_edge.deadline import Budget, DeadlineReached
from gog_edge.dialects import Dialect
from gog_edge.errors import CancelledError, GogEdgeError, ImageError, RegionError, SessionError
from gog_edge.runtime.session import Session
from gog_edge.runtime.vision import VisionEmbedder
from gog_edge.search.base import IMAGE, PAGE, TEXT, ImageQuery
from gog_edge.types import Action, ActionKind, Hit, Observation, PixelLimits, Region

log = logging.getLogger("gog_edge.agent")

_SEARCHES = (ActionKind.GLANCE, ActionKind.GAZE, ActionKind.TEXT_SEARCH, ActionKind.VISIT)
_IMAGE_SEARCHES = (ActionKind.GLANCE, ActionKind.GAZE)
_NEEDS = {
    ActionKind.GLANCE: IMAGE,
    ActionKind.GAZE: IMAGE,
    ActionKind.TEXT_SEARCH: TEXT,
    ActionKind.VISIT: PAGE,
}
_SET_UP = "name a local index (--index, index=) or search providers (--search, search=)"
_DONE_BY = {IMAGE: "image search", TEXT: "text search", PAGE: "page reader"}


@dataclass
class ToolExecutor:
    """Executes the actions of one question."""

    session: Session
    dialect: Dialect
    dispatcher: SearchDispatcher
    options: RunOptions
    request: AskRequest
    budget: Budget
    user_images: int
    used: dict[ActionKind, int] = field(default_factory=dict)
    _encoding: list[Future[None]] = field(default_factory=list)
    _started: set[tuple[int, Region]] = field(default_factory=set)

    def can(self, kind: ActionKind) -> bool:
        """Whether anything is set up that does calls of this kind."""
        return kind not in _NEEDS or self.dispatcher.can(_NEEDS[kind])

    def missing(self) -> str:
        """What this policy can call and nothing is set up for, in one line; empty if there is no such thing."""
        known = {action.kind for action in self.dialect.spec.actions}
        needed = dict.fromkeys(need for kind, need in _NEEDS.items() if kind.value in known)
        missing = [_DONE_BY[need] for need in needed if not self.dispatcher.can(need)]
        if not missing:
            return ""
        return f"no {' and no '.join(missing)} is set up, such calls of the policy will fail: {_SET_UP}"

    # -- early -----------------------------------------------------------------------------------------------

    def expect_glance(self) -> None:
        """Search with the first image now, if that costs the policy nothing; encodes the images of the prompt.

        A provider that uses the policy's own tower waits for the encoding, which the prompt needs anyway; another
        one starts at once.

        Raises:
            EngineError: the engine failed. CancelledError, DeadlineReached: the question ended meanwhile.
        """
        wanted = self.options.prefetch.glance and self.dispatcher.can(IMAGE) and bool(self.session.images)
        embedder = getattr(self.dispatcher.first(IMAGE), "embedder", None)
        own_tower = isinstance(embedder, VisionEmbedder)
        query = self._query(Action(ActionKind.GLANCE), "") if wanted else None
        if query is not None and not own_tower:
            self.dispatcher.image_early(query, self._results(None))
        self.session.encode_images(self.budget)
        if query is None or not isinstance(embedder, VisionEmbedder):
            return
        plan = self.session.image(0).plan
        if plan is not None and embedder.plan(query.frame, query.region).key == plan.key:
            self.dispatcher.image_early(query, self._results(None))

    def expect_crop(self, region: Region, image: int) -> None:
        """A box was closed: encode the crop and search with it, in the background."""
        if (image, region) in self._started or not 0 <= image < len(self.session.images):
            return
        self._started.add((image, region))
        action = Action(ActionKind.GAZE, region=region, image=image)
        kinds = {a.kind for a in self.dialect.spec.actions}
        if self.options.prefetch.crop_search and "gaze" in kinds:
            self.dispatcher.image_early(self._query(action, ""), self._results(None))
        shown = self.dialect.shows_crop(ActionKind.GAZE if "gaze" in kinds else ActionKind.ZOOM)
        if self.options.prefetch.crop and shown and self.session.encodes_images:
            self._encoding.append(run_in_thread(lambda: self._encode_early(action), "encode"))

    def finish(self) -> None:
        """Wait for background encoding (the budget's end interrupts it)."""
        for future in self._encoding:
            future.exception()
        self._encoding.clear()

    def _encode_early(self, action: Action) -> None:
        session = self.session
        try:
            plan = session.model.vision.plan(session.frame(action.image), action.region, self._crop_limits())
            session.encoded_early.add(plan.key)
            _, cached = session.model.vision.encode(plan, self.budget, session.trace, session.brought)
            if cached:
                session.encoded_early.discard(plan.key)
        except (CancelledError, DeadlineReached, GogEdgeError) as e:
            log.debug("early encoding ended: %s", e)  # the call itself will find and report what is wrong

    # -- acting ----------------------------------------------------------------------------------------------

    def perform(self, actions: Sequence[Action], budget: Budget, ahead: ReadAhead | None = None) -> list[Observation]:
        """One observation per action, in order; waits no longer than `budget`, and lets `ahead` read meanwhile.

        Raises:
            EngineError: the engine failed. CancelledError, DeadlineReached: the question ended meanwhile.
        """
        allowed = [self._allowed(action) for action in actions]
        started = [self._start(action) for action in allowed]
        done: list[Observation] = []
        for number, (action, search) in enumerate(zip(allowed, started)):
            try:
                waiting = Observation(action, shown=self._register_crop(action))
            except (RegionError, ImageError, SessionError) as e:
                done.append(Observation(self.dialect.invalid("box", str(e))))
                continue
            since = budget.clock.now()
            if search is not None and ahead is not None:
                ahead.read(done, waiting, allowed[number + 1 :], search, budget)
            done.append(self._finish(waiting, search, budget, budget.clock.now() - since))
        return done

    def _allowed(self, action: Action) -> Action:
        """The action, or the dialect's reply that this kind is used up."""
        limits, kind = self.dialect.limits, action.kind
        if kind in (ActionKind.INVALID, ActionKind.ANSWER):
            return action
        image_searches = sum(self.used.get(k, 0) for k in _IMAGE_SEARCHES)
        spent = (
            (limits.calls, sum(self.used.values()), "calls"),
            (limits.image_searches if kind in _IMAGE_SEARCHES else 0, image_searches, "image searches"),
            (limits.text_searches if kind is ActionKind.TEXT_SEARCH else 0, self.used.get(kind, 0), "text searches"),
            (limits.zooms if kind is ActionKind.ZOOM else 0, self.used.get(kind, 0), "zooms"),
        )
        for limit, count, what in spent:
            if limit and count >= limit:
                self.session.trace.note(f"the limit of {limit} {what} is reached")
                return self.dialect.invalid("limit", f"no more than {limit} {what} are allowed")
        self.used[kind] = self.used.get(kind, 0) + 1
        return action

    def _start(self, action: Action) -> Future[Outcome] | None:
        if action.kind is ActionKind.TEXT_SEARCH:
            return self.dispatcher.text(action.text, self._results(action.limit))
        if action.kind is ActionKind.VISIT:
            return self.dispatcher.page(action.text, action.label or self.request.question)
        if action.kind in _IMAGE_SEARCHES:
            try:
                return self.dispatcher.image(self._query(action, action.label), self._results(action.limit))
            except SessionError as e:
                failed: Future[Outcome] = Future()
                failed.set_result(Outcome(error=str(e)))
                return failed
        return None

    def _finish(
        self, waiting: Observation, search: Future[Outcome] | None, budget: Budget, waited: float
    ) -> Observation:
        action = waiting.action
        outcome = self.dispatcher.wait(search, budget, waited=waited) if search is not None else Outcome()
        thumbnails: tuple[int | None, ...] = ()
        if outcome.hits and self.dialect.shows_thumbnails(action.kind):
            wanted = action.limit or self.dialect.limits.results
            thumbnails = self._register_pictures(outcome.hits[: wanted or None], outcome.provider, budget)
        return Observation(
            action,
            outcome.hits,
            outcome.error,
            outcome.text,
            waiting.shown,
            outcome.provider,
            thumbnails,
        )

    def _register_crop(self, action: Action) -> int | None:
        """The crop that the observation will show, in the registry; None where it shows none."""
        if action.region is None or not self.dialect.shows_crop(action.kind):
            return None
        session = self.session
        source = session.image(action.image).geometry.source
        geometry = session.add_image(
            session.frame(action.image), action.region, source=source, limits=self._crop_limits()
        )
        return geometry.index

    def _register_pictures(self, hits: Sequence[Hit], provider: str, budget: Budget) -> tuple[int | None, ...]:
        """The results' pictures in the registry; None for those that could not be loaded."""
        limits = self.dialect.limits.thumbnail
        jobs = [self.dispatcher.picture(hit, provider) for hit in hits]
        out: list[int | None] = []
        for job in jobs:
            frame = self.dispatcher.wait_picture(job, budget) if job is not None else None
            try:
                out.append(self.session.add_image(frame, limits=limits).index if frame is not None else None)
            except GogEdgeError as e:  # too thin to be shown
                self.session.trace.note(f"a result's picture is left out: {e}")
                out.append(None)
        return tuple(out)

    def _query(self, action: Action, label: str) -> ImageQuery:
        session = self.session
        geometry = session.image(action.image).geometry
        url = self.request.urls[geometry.source] if geometry.source < len(self.request.urls) else ""
        region = action.region or geometry.region
        return ImageQuery(session.frame(action.image), region, label, url, self.request.key)

    def _results(self, asked: int | None) -> int:
        # The dialect's number includes related entries, which are not asked for from providers.
        return asked or self.options.results or max(0, self.dialect.limits.results - self.options.expand) or 3

    def _crop_limits(self) -> PixelLimits:
        return crop_limits(self.dialect.limits, self.options)

    @property
    def searches(self) -> int:
        """Searches done so far."""
        return sum(self.used.get(kind, 0) for kind in _SEARCHES)
