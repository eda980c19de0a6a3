"""Searching for one question: which provider, in parallel, with a deadline, and started early where that is harmless.

Providers are asked in order; the first that can do a kind of search is used, and the next one if it fails. Whatever
a provider does (raise, hang, return garbage) ends as an `Outcome` with an error, never as an exception.

A search that was started early is used only for exactly the query it was started with (same image, same box, same
label unless the provider ignores labels, same number of results), so it can't change what the policy reads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gog_edge.agent.request import AskRequest
from gog_edge.deadline import Budget
from gog_edge.disk.paths import is_address
from gog_edge.errors import GogEdgeError, SearchError, SearchTimeoutError
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits
from gog_edge.runtime.telemetry import Trace, redact
from gog_edge.sanitize import Neutraliser
from gog_edge.search.base import IMAGE, PAGE, PICTURE, TEXT, Deadline, ImageQuery, SearchProvider
from gog_edge.types import Hit

log = logging.getLogger("gog_edge.search")

_TITLE_CHARS, _BACKGROUND_CHARS = 200, 400
_GRACE_S = 0.25  # a provider gets this much longer than its deadline, so that its own message is used


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search: hits or a page's text, or an error in one line."""

    hits: tuple[Hit, ...] = ()
    text: str = ""
    error: str = ""
    provider: str = ""


Key = tuple[Any, ...]
Call = Callable[[SearchProvider, Deadline], Outcome]


class SearchDispatcher:
    """Searches of one question. Used by the question's own thread; the work runs in threads of its own."""

    def __init__(
        self,
        providers: Sequence[SearchProvider],
        timeout: float,
        budget: Budget,
        trace: Trace,
        pictures: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self._providers = list(providers)
        self._timeout = timeout
        self._budget = budget
        self._pictures = pictures
        self._trace = trace
        self._early: dict[Key, Future[Outcome]] = {}

    def can(self, kind: str) -> bool:
        """Whether a provider does this kind of search."""
        return any(kind in p.kinds for p in self._providers)

    def first(self, kind: str) -> SearchProvider | None:
        """The provider that is asked first."""
        return next((p for p in self._providers if kind in p.kinds), None)

    def picture(self, hit: Hit, provider: str) -> Future[Frame] | None:
        """Start getting the picture of a hit of `provider`; None if nobody can.

        Only providers of this machine may name files: a page from the web must not choose what is opened here.
        Addresses go to the first provider that gets pictures, which checks them.
        """
        if is_address(hit.image):
            reader = self.first(PICTURE)
            if reader is None:
                self._trace.note("a result's picture is left out: no provider gets pictures (add one of kind fetch)")
                return None
            deadline = self._deadline()
            return run_in_thread(lambda: reader.read_image(hit.image, deadline=deadline), "picture")
        named = (p for p in self._providers if p.name == provider)
        if hit.image and any(getattr(p, "local_files", False) for p in named):
            limits, budget = self._pictures, self._budget
            return run_in_thread(lambda: Frame.open(Path(hit.image), limits=limits, budget=budget), "picture")
        return None

    def wait_picture(self, future: Future[Frame], budget: Budget) -> Frame | None:
        """The picture, or None if it could not be loaded (then the result comes without it).

        Raises:
            CancelledError, DeadlineReached: `budget` ended meanwhile.
        """
        if not budget.wait(future, self._timeout):
            self._trace.note("a result's picture is left out: it took too long")
            return None
        problem = future.exception()
        if problem is not None:
            self._trace.note(f"a result's picture is left out: {redact(str(problem))}")
            return None
        return future.result()

    def text(self, query: str, k: int) -> Future[Outcome]:
        """Start a text search."""
        return self._start(TEXT, lambda p, d: Outcome(hits=tuple(p.search_text(query, k=k, deadline=d))))

    def page(self, url: str, goal: str) -> Future[Outcome]:
        """Start reading a page."""

        def read(provider: SearchProvider, deadline: Deadline) -> Outcome:
            page = provider.read_page(url, deadline=deadline, goal=goal)
            hit = Hit(title=page.title, text="", source=page.url)
            return Outcome(hits=(hit,) if page.title else (), text=page.text)

        return self._start(PAGE, read)

    def image(self, query: ImageQuery, k: int) -> Future[Outcome]:
        """An image search: the one that was started early for this very query, or a new one."""
        early = self._early.pop(self._key(query, k), None)
        if early is not None and not (early.done() and early.result().error):  # a failed one is tried again
            self._trace.note("an image search that was started early is used")
            return early
        return self._image(query, k)

    def image_early(self, query: ImageQuery, k: int) -> None:
        """Start an image search that may be asked for, unless its provider wants to be asked first."""
        key = self._key(query, k)
        provider = self.first(IMAGE)
        if provider is not None and getattr(provider, "early", True) and key not in self._early:
            self._early[key] = self._image(query, k, early=True)

    def wait(self, future: Future[Outcome], budget: Budget, *, waited: float = 0.0) -> Outcome:
        """The outcome, or a timeout as an error; `waited`: seconds that it was waited for already.

        Raises:
            CancelledError, DeadlineReached: `budget` ended meanwhile.
        """
        with self._trace.span("wait"):
            budget.wait(future, max(self._timeout + _GRACE_S - waited, 0.0))
        if not future.done():
            return Outcome(error=f"the search took longer than {self._timeout:g} s")
        return future.result()

    def background(self, frame: Frame, request: AskRequest, results: int) -> str:
        """What searching with the question and the image finds before the policy starts, as outside text of the prompt
        (Early Knowledge Alignment); empty where nothing is found.

        Raises:
            CancelledError, DeadlineReached: the question ended meanwhile.
        """
        jobs = []
        if self.can(IMAGE):
            url = request.urls[0] if request.urls else ""
            jobs.append(self.image(ImageQuery(frame, None, "", url, request.key), results))
        if self.can(TEXT):
            jobs.append(self.text(request.question, results))
        hits: list[Hit] = []
        for job in jobs:
            hits += [h for h in self.wait(job, self._budget).hits if h not in hits]
        if not hits:
            return ""
        clean = Neutraliser()  # outside text, as in the results of a turn
        kept = hits[: 2 * results]
        lines = [f"- {clean.line(h.title, _TITLE_CHARS)}: {clean.line(h.text, _BACKGROUND_CHARS)}" for h in kept]
        return "\n\nPossibly related, found by searching:\n" + "\n".join(lines)

    def _image(self, query: ImageQuery, k: int, *, early: bool = False) -> Future[Outcome]:
        def search(provider: SearchProvider, deadline: Deadline) -> Outcome:
            return Outcome(hits=tuple(provider.search_image(query, k=k, deadline=deadline)))

        return self._start(IMAGE, search, early=early)

    def _deadline(self) -> Deadline:
        """What a provider is given: the search's own time, or what is left of the question's if that is less."""
        return Deadline.after(min(self._timeout, self._budget.remaining()), self._budget.clock)

    def _key(self, query: ImageQuery, k: int) -> Key:
        provider = self.first(IMAGE)
        label = query.label if getattr(provider, "use_label", True) else ""
        return (query.frame.digest, query.region, label, query.url, query.key, k)

    def _start(self, kind: str, call: Call, *, early: bool = False) -> Future[Outcome]:
        able = [p for p in self._providers if kind in p.kinds]
        budget, trace = self._budget, self._trace

        def work() -> Outcome:
            deadline = self._deadline()
            problems = []
            for provider in able:
                with trace.span("search", kind=kind, provider=provider.name, early=early) as fields:
                    outcome = _ask(provider, call, deadline)
                    fields["hits"] = len(outcome.hits)
                    if not outcome.error:
                        return outcome
                    fields["problem"] = outcome.error
                problems.append(outcome.error)
                if deadline.expired or budget.cancelled:
                    break
            return Outcome(error="; ".join(problems) or f"no {kind} search is set up", provider=_names(able))

        return run_in_thread(work, f"search-{kind}")


def _ask(provider: SearchProvider, call: Call, deadline: Deadline) -> Outcome:
    try:
        outcome = call(provider, deadline)
        if not all(isinstance(hit, Hit) for hit in outcome.hits):
            raise TypeError("a result is not a Hit")
        return replace(outcome, provider=provider.name)
    except SearchTimeoutError as e:
        return Outcome(error=redact(str(e)), provider=provider.name)
    except (SearchError, GogEdgeError) as e:
        return Outcome(error=redact(str(e)), provider=provider.name)
    except BaseException as e:  # a provider is somebody else's code: its bug, or its exit, is a failed search
        log.warning("provider %s failed: %s", provider.name, redact(f"{type(e).__name__}: {e}"), exc_info=True)
        return Outcome(error=f"{provider.name} failed ({type(e).__name__})", provider=provider.name)


def _names(providers: Sequence[SearchProvider]) -> str:
    return ", ".join(p.name for p in providers)


def run_in_thread(work: Callable[[], Any], name: str, *, daemon: bool = True) -> Future[Any]:
    """Run `work` in a thread; a daemon, because a provider that never returns must not keep the program alive.

    Native code that comes back into Python (a tokenizer, say) needs `daemon=False`: it crashes when the interpreter
    ends under it.
    """
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # who waits in vain (asyncio's `wait_for`) can't take it from the thread
    threading.Thread(target=_run, args=(future, work), name=f"gog-{name}", daemon=daemon).start()
    return future


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as e:  # noqa: BLE001 - handed to whoever waits
        future.set_exception(e)
    finally:
        del future, work  # an error's traceback holds this call: with the future in it they would be a circle
