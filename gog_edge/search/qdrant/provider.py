"""A collection of Qdrant as a search provider: the rules of the local index over Qdrant's rankings."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError, ImageError, RegionError, SearchError, SearchIndexError
from gog_edge.search.base import IMAGE, PAGE, TEXT, BaseProvider, Cut, Deadline, Embedder, ImageQuery, Page, checked_cut
from gog_edge.search.local.lexical import boosted
from gog_edge.search.local.provider import MAX_HITS
from gog_edge.search.local.rank import Scored, chosen, ordered, related_first
from gog_edge.search.local.text import parse_query
from gog_edge.search.qdrant import collection
from gog_edge.types import Hit

_NEIGHBOURS = 16  # relations looked at for each expanded hit, each way


class QdrantProvider(BaseProvider):
    """Searches what `collection.push` wrote. Thread-safe.

    Args:
        address: qdrant:URL#COLLECTION, or qdrant:FOLDER#COLLECTION.
        embedder_of: gives the embedder for the facts of the collection ("encoder", "encoder_file"), or None.
        cut, expand, use_label: as for `LocalProvider`.

    Raises:
        UsageError: the address can't be read.
        SearchIndexError: no such collection, not one of ours, vectors of another encoder, or Qdrant can't be reached.
    """

    name = "qdrant"
    local_files = True  # the pictures of its hits are files where it was pushed from

    def __init__(
        self,
        address: object,
        embedder_of: Callable[[dict[str, Any]], Embedder | None],
        *,
        cut: Cut = "gap",
        expand: int = 0,
        use_label: bool = True,
    ) -> None:
        self.address = address
        self.cut, self.expand, self.use_label = checked_cut(cut), expand, use_label
        self._client, self._name = collection.connect(address)
        self._lock = threading.Lock()  # the client that keeps a folder by itself is not for several threads
        try:
            found = self._call(lambda: self._client.retrieve(self._name, [collection.FACTS]))
            facts = dict(found[0].payload or {}) if found else {}
            if "encoder" not in facts:
                raise SearchIndexError(f"{address}: is no index of gog-edge; `gog-edge index push` writes one")
            self.embedder = embedder_of(facts) if facts["encoder"] else None
            if self.embedder is not None and self.embedder.fingerprint != facts["encoder"]:
                raise SearchIndexError(
                    f"{address}: its vectors were made by encoder {facts['encoder']}, "
                    f"this one is {self.embedder.fingerprint}"
                )
        except BaseException:
            self.close()
            raise
        self.kinds = frozenset({TEXT, PAGE} | ({IMAGE} if self.embedder is not None else set()))

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        return self._search(query, None, k, deadline)

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        if self.embedder is None:
            return super().search_image(query, k=k, deadline=deadline)
        try:
            vector = self.embedder.embed(query.frame, query.region)
        except (EngineError, ImageError, RegionError) as e:
            raise SearchError(f"qdrant image search: {e}") from e
        return self._search(query.label if self.use_label else "", vector, k, deadline)

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        """The entry whose id or source is `url`: its own text, whole."""
        deadline.check("qdrant page")
        for field in ("id", "source"):
            found = self._tell(partial(self._matching, field, url, 1))
            if found:
                entry = found[0].payload
                return Page(url=entry["source"] or entry["id"], title=entry["title"], text=entry["text"])
        raise SearchError(f"the index has no entry with the id or source {url[:200]!r}")

    def close(self) -> None:
        self._client.close()

    # -- searching -------------------------------------------------------------------------------------------

    def _search(self, text: str, vector: NDArray[np.float32] | None, k: int, deadline: Deadline) -> list[Hit]:
        deadline.check("qdrant search")
        seconds = deadline.timeout(20.0) or 20.0
        most = min(max(k, 1), MAX_HITS)
        hits: list[Hit] = self._tell(partial(self._ranked, text, vector, most, math.ceil(seconds)))
        return hits

    def _ranked(self, text: str, vector: NDArray[np.float32] | None, k: int, seconds: int) -> list[Hit]:
        pool = max(4 * k, 32)
        points: dict[int, Any] = {}
        by_text = self._by_text(text, pool, points, seconds) if text.strip() else []
        by_image: list[Scored] | None = None
        if vector is not None:
            found = self._query([vector.tolist()], collection.IMAGE, pool, seconds)
            points.update((p.id, p) for p in found)
            by_image = ordered([Scored(p.id, round(p.score, 6)) for p in found])
        rows = chosen(by_text, by_image, k, pool, self.cut)
        scores = {s.entity: s.score for s in (by_text if by_image is None else by_image)}
        hits = [_hit(points[row].payload, scores.get(row)) for row in rows]
        return hits + self._related(rows, points, text) if self.expand > 0 else hits

    def _by_text(self, text: str, pool: int, points: dict[int, Any], seconds: int) -> list[Scored]:
        from qdrant_client import models

        terms = parse_query(text).terms
        words = sorted({collection.number_of(w) for w in collection.words_of(" ".join(terms))})
        if not words:
            return []
        asked = models.SparseVector(indices=words, values=[1.0] * len(words))
        found = self._query(asked, collection.TEXT, pool, seconds)
        points.update((p.id, p) for p in found)
        scored = [Scored(p.id, p.score) for p in found]
        return boosted(scored, {p.id: p.payload["title"] for p in found}, text, terms)

    def _query(self, asked: Any, which: str, pool: int, seconds: int) -> list[Any]:
        return list(
            self._client.query_points(
                self._name, query=asked, using=which, limit=pool, with_payload=True, timeout=seconds
            ).points
        )

    def _related(self, rows: Sequence[int], points: dict[int, Any], text: str) -> list[Hit]:
        """See `LocalIndex`: neighbours of the results over relations, those that share words with `text` first."""
        parent: dict[int, int] = {}
        for row in rows:
            entry = points[row].payload
            found = [p for name in entry["related"][:_NEIGHBOURS] for p in self._matching("id", name, 1)]
            for point in [*found, *self._matching("related", entry["id"], _NEIGHBOURS)]:
                points.setdefault(point.id, point)
                if point.id not in rows:
                    parent.setdefault(point.id, row)
        titles = {row: points[row].payload["title"] for row in [*rows, *parent]}
        return [_hit(points[row].payload, None) for row in related_first(parent, titles, text)[: self.expand]]

    def _matching(self, field: str, value: str, limit: int) -> list[Any]:
        from qdrant_client import models

        condition = models.FieldCondition(key=field, match=models.MatchValue(value=value))
        found, _ = self._client.scroll(self._name, models.Filter(must=[condition]), limit=limit)
        return sorted(found, key=lambda p: p.id)

    def _call(self, work: Callable[[], Any]) -> Any:
        try:
            with self._lock:
                return work()
        except Exception as e:
            raise collection.unusable(self.address, e) from e

    def _tell(self, work: Callable[[], Any]) -> Any:
        try:
            return self._call(work)
        except SearchIndexError as e:
            raise SearchError(str(e)) from e


def _hit(entry: dict[str, Any], score: float | None) -> Hit:
    images = entry["images"]
    return Hit(entry["title"], entry["text"], entry["source"], score, entry["id"], images[0] if images else "")
