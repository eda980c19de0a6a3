"""From a JSON answer to hits, by a mapping of paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gog_edge.disk.paths import is_address
from gog_edge.errors import SearchError
from gog_edge.search.web.jsonpath import pick, pick_text
from gog_edge.types import Hit

MAX_FIELD_CHARS = 8_000
RESULT_NAMES = frozenset({"items", "title", "text", "source", "image", "score", "entity"})


def hits_of(
    document: Any, names: Mapping[str, str], k: int, *, provider: str, redact: Callable[[str], str] = str
) -> list[Hit]:
    """At most `k` hits of the list at `names["items"]`; items without title and text are left out.

    Raises:
        SearchError: the value there is not a list.
    """
    where = names.get("items", "")
    items = pick(document, where)
    if items is None:
        return []
    if not isinstance(items, list):
        raise SearchError(f"{provider}: the answer has no list at {where!r}")
    hits: list[Hit] = []
    for item in items:
        hit = hit_of(item, names, redact)
        if hit is not None:
            hits.append(hit)
        if len(hits) == k:
            break
    return hits


def hit_of(item: Any, names: Mapping[str, str], redact: Callable[[str], str] = str) -> Hit | None:
    """One hit, or None when it has neither title nor text. Fields are bounded; pictures must be web addresses."""

    def text(name: str, default: str = "") -> str:
        return " ".join(pick_text(item, names.get(name, default), redact).split())[:MAX_FIELD_CHARS]

    title, body, source, image = text("title", "title"), text("text", "text"), text("source"), text("image")
    if not (title or body):
        return None
    score = pick(item, names["score"]) if "score" in names else None
    return Hit(
        title=title,
        text=body,
        source=source,
        score=float(score) if isinstance(score, (int, float)) and not isinstance(score, bool) else None,
        entity=text("entity") or source,
        image=image if is_address(image) else "",
    )
