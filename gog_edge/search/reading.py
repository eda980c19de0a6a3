"""A text search that reads what it finds: the first pages are fetched in parallel and cut to the passages that matter.

Snippets of search engines rarely hold the answer. What can't be read in time keeps its snippet, so reading never
makes a search fail.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from gog_edge.disk.paths import is_address
from gog_edge.errors import EngineError, SearchError
from gog_edge.search.base import PAGE, PICTURE, TEXT, BaseProvider, Deadline, ImageQuery, Page, SearchProvider
from gog_edge.search.passages import TextEmbedder, best_passages
from gog_edge.types import Hit

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

log = logging.getLogger("gog_edge.search")
RESERVE = 0.05  # of the time left: for cutting and handing over


class ReadingProvider(BaseProvider):
    """`search` with its hits' texts replaced by passages of their pages, read by `reader`.

    Args:
        pages: how many of the best hits are read.
        chars: of passages per hit.
        seconds: for reading, after the search came back; never beyond the deadline.
        embedder: joins the choice of passages.
    """

    def __init__(
        self,
        search: SearchProvider,
        reader: SearchProvider,
        *,
        pages: int = 3,
        chars: int = 1200,
        seconds: float = 6.0,
        embedder: TextEmbedder | None = None,
    ) -> None:
        self.name, self.early = search.name, getattr(search, "early", True)
        self.kinds = search.kinds | (reader.kinds & {PAGE, PICTURE})
        self._search, self._reader = search, reader
        self._pages, self._chars, self._seconds, self._embedder = pages, chars, seconds, embedder
        if TEXT not in search.kinds or PAGE not in reader.kinds:
            raise SearchError(f"{search.name}: reading needs a text search and a page reader")

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        hits = self._search.search_text(query, k=k, deadline=deadline)
        chosen = [i for i, hit in enumerate(hits) if is_address(hit.source)][: self._pages]
        limit = deadline.within(self._seconds)
        limit = limit.within(limit.remaining() * (1 - RESERVE))
        for number, page in self._read(hits, chosen, limit):
            text = self._cut(page.text, query, self._chars)
            if text:
                hits[number] = replace(hits[number], text=text, title=hits[number].title or page.title)
        return hits

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        return self._search.search_image(query, k=k, deadline=deadline)

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        page = self._reader.read_page(url, deadline=deadline, goal=goal)
        if not goal.strip():
            return page
        text = self._cut(page.text, goal, 4 * self._chars)
        return replace(page, text=text, truncated=page.truncated or len(text) < len(page.text))

    def read_image(self, url: str, *, deadline: Deadline) -> Frame:
        return self._reader.read_image(url, deadline=deadline)

    def close(self) -> None:
        self._search.close()
        self._reader.close()

    def _cut(self, text: str, query: str, chars: int) -> str:
        try:
            return best_passages(text, query, chars=chars, embedder=self._embedder)
        except EngineError as e:
            raise SearchError(f"{self.name}: {e}") from e

    def _read(self, hits: Sequence[Hit], chosen: Sequence[int], deadline: Deadline) -> list[tuple[int, Page]]:
        """Pages that were read in time, in the order of the hits."""
        done: SimpleQueue[tuple[int, Future[Page]]] = SimpleQueue()
        for number in chosen:
            Thread(
                target=self._read_one, args=(number, hits[number].source, deadline, done), name="gog-read", daemon=True
            ).start()
        pages: list[tuple[int, Page]] = []
        for _ in chosen:
            try:
                number, future = done.get(timeout=max(deadline.remaining(), 0.001))
            except Empty:
                log.info("%s: not all pages were read in time; snippets stay", self.name)
                break
            problem = future.exception()
            if problem is None:
                pages.append((number, future.result()))
            elif isinstance(problem, SearchError):
                log.info("%s: %s", self.name, problem)
            else:
                raise SearchError(f"{self.name}: {type(problem).__name__}: {problem}") from problem
        return sorted(pages, key=lambda p: p[0])

    def _read_one(self, number: int, url: str, deadline: Deadline, done: SimpleQueue[tuple[int, Future[Page]]]) -> None:
        future: Future[Page] = Future()
        try:
            future.set_result(self._reader.read_page(url, deadline=deadline))
        except BaseException as e:  # noqa: BLE001 - raised again by whoever waits
            future.set_exception(e)
        done.put((number, future))
