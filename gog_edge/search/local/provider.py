"""The local index as a search provider: text by FTS5, pictures by the index's own encoder, both fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError, ImageError, RegionError, SearchError, SearchIndexError
from gog_edge.search.base import IMAGE, PAGE, TEXT, BaseProvider, Cut, Deadline, Embedder, ImageQuery, Page, checked_cut
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import ensure_same_encoder
from gog_edge.types import Hit

MAX_HITS = 100


class LocalProvider(BaseProvider):
    """Searches an index folder. Thread-safe.

    Args:
        index: the folder, or an opened index (which stays the caller's to close).
        embedder: makes vectors of pictures; must be the one that the index was built with. Without one, and for an
            index without vectors, the provider searches text only.
        cut: how many results are shown (`search.base.Cut`).
        expand: append up to this many entries related to the results.
        use_label: let the label of a gaze join the ranking of its picture.

    Raises:
        SearchIndexError: the index can't be opened, or holds vectors of another encoder.
    """

    local_files = True  # the pictures of its hits are files of this machine, and may be opened

    def __init__(
        self,
        index: str | Path | LocalIndex,
        embedder: Embedder | None = None,
        *,
        cut: Cut = "gap",
        expand: int = 0,
        use_label: bool = True,
    ) -> None:
        self._own = not isinstance(index, LocalIndex)
        self.index = index if isinstance(index, LocalIndex) else LocalIndex(index)
        self.embedder = embedder
        self.cut, self.expand, self.use_label = checked_cut(cut), expand, use_label
        self.name = "local"
        kinds = {TEXT, PAGE}
        try:
            if embedder is not None and self.index.encoder:
                ensure_same_encoder(self.index, embedder)
                kinds.add(IMAGE)
        except SearchIndexError:
            self.close()
            raise
        self.kinds = frozenset(kinds)

    def prepare(self) -> None:
        """Load vectors now instead of at the first search."""
        if IMAGE in self.kinds:
            self.index.prepare()

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        deadline.check("local text search")
        return self._search(query, None, k)

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        deadline.check("local image search")
        if self.embedder is None or IMAGE not in self.kinds:
            return super().search_image(query, k=k, deadline=deadline)
        try:
            vector = self.embedder.embed(query.frame, query.region)
        except (EngineError, ImageError, RegionError) as e:
            raise SearchError(f"local image search: {e}") from e
        deadline.check("local image search")
        return self._search(query.label if self.use_label else "", vector, k)

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        """The entry whose id or source is `url`: its own text, whole."""
        deadline.check("local page")
        try:
            entity = self.index.find(url)
        except SearchIndexError as e:
            raise SearchError(f"local page: {e}") from e
        if entity is None:
            raise SearchError(f"the local index has no entry with the id or source {url[:200]!r}")
        return Page(url=entity.source or entity.id, title=entity.title, text=entity.text)

    def close(self) -> None:
        if self._own:
            self.index.close()

    def _search(self, text: str, vector: NDArray[np.float32] | None, k: int) -> list[Hit]:
        try:
            return self.index.search(text, vector, k=min(max(k, 1), MAX_HITS), cut=self.cut, expand=self.expand)
        except SearchIndexError as e:
            raise SearchError(f"local search: {e}") from e
