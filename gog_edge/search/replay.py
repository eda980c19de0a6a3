"""Recorded searches: played back without a network, and recorded from any provider.

Two formats. The image-search cache that comes with FVQA: a JSON object (or a pickled dict, read without running any
code) of data id -> {"tool_returned_web_title_list": […], "tool_returned_images_urls": […]}; and our own JSONL, one
search per line: {"kind": "text", "query": …, "hits": […]}, {"kind": "image", "image": sha256, "box": …, "label": …,
"hits": […]}, {"kind": "page", "url": …, "page": {…}}, each with "error" where the search failed.
"""

from __future__ import annotations

import io
import json
import pickle
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gog_edge.disk.paths import is_address
from gog_edge.errors import SearchError
from gog_edge.search.base import IMAGE, PAGE, TEXT, BaseProvider, Deadline, ImageQuery, Page, SearchProvider
from gog_edge.search.cache import hit_from
from gog_edge.types import Hit

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

TITLES, PICTURES = "tool_returned_web_title_list", "tool_returned_images_urls"
MAX_FILE_BYTES = 1 << 30
T = TypeVar("T")


class FvqaReplay(BaseProvider):
    """Image search out of an FVQA cache, by the question's data id (`ImageQuery.key`).

    Raises:
        SearchError: the file is missing or holds something else.
    """

    name = "fvqa-cache"
    kinds = frozenset({IMAGE})

    def __init__(self, path: str | Path) -> None:
        self._entries = read_fvqa_cache(Path(path))

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        deadline.check("image search replay")
        entry = self._entries.get(query.key)
        if entry is None:
            raise SearchError(f"the recorded image searches hold nothing for the question {query.key or '(no id)'!r}")
        titles, pictures = _strings(entry.get(TITLES)), _strings(entry.get(PICTURES))
        count = min(max(len(titles), len(pictures)), k)
        return [
            Hit(
                title=titles[i] if i < len(titles) else "",
                text="",
                entity=f"{query.key}#{i + 1}",
                image=pictures[i] if i < len(pictures) and is_address(pictures[i]) else "",
            )
            for i in range(count)
        ]


class JsonlReplay(BaseProvider):
    """Plays back what a `Recorder` wrote. A search that was not recorded fails; it never reaches a network.

    Raises:
        SearchError: the file is missing or a line is wrong.
    """

    name = "replay"

    def __init__(self, path: str | Path) -> None:
        self._lines: dict[str, dict[str, Any]] = {}
        kinds: set[str] = set()
        for number, line in enumerate(_read_text(Path(path)).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                self._lines[_line_key(fields)] = fields
                kinds.add(str(fields["kind"]))
            except (ValueError, KeyError, TypeError) as e:
                raise SearchError(f"{path}:{number}: not a recorded search ({e})") from e
        self.kinds = frozenset(kinds)

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        deadline.check("text search replay")
        return _hits(self._find(_text_key(query), f"the text search {query[:80]!r}"))[:k]

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        deadline.check("image search replay")
        return _hits(self._find(_image_key(query), "this image search"))[:k]

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        deadline.check("page replay")
        fields = self._find(_page_key(url, goal), f"the page {url[:120]!r}")
        return Page(**fields["page"])

    def _find(self, key: str, what: str) -> dict[str, Any]:
        fields = self._lines.get(key)
        if fields is None:
            raise SearchError(f"{what} was not recorded")
        if fields.get("error"):
            raise SearchError(str(fields["error"]))
        return fields


class Recorder(BaseProvider):
    """Passes searches on to `inner` and appends each, failures too, to a JSONL file. Thread-safe.

    Pictures are passed on and not recorded.
    """

    def __init__(self, inner: SearchProvider, path: str | Path) -> None:
        self.name, self.kinds = inner.name, inner.kinds
        self._inner, self._path = inner, Path(path)
        self._lock = threading.Lock()

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        fields = {"kind": TEXT, "query": query}
        return self._record(fields, lambda: self._inner.search_text(query, k=k, deadline=deadline), _hits_json)

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        fields = {"kind": IMAGE, "image": query.frame.digest, "box": _box(query), "label": query.label}
        return self._record(fields, lambda: self._inner.search_image(query, k=k, deadline=deadline), _hits_json)

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        fields = {"kind": PAGE, "url": url, "goal": goal}
        return self._record(
            fields,
            lambda: self._inner.read_page(url, deadline=deadline, goal=goal),
            lambda page: {"page": asdict(page)},
        )

    def read_image(self, url: str, *, deadline: Deadline) -> Frame:
        return self._inner.read_image(url, deadline=deadline)

    def close(self) -> None:
        self._inner.close()

    def _record(self, fields: dict[str, Any], call: Callable[[], T], encode: Callable[[T], dict[str, Any]]) -> T:
        try:
            result = call()
        except SearchError as e:
            self._append({**fields, "provider": self.name, "error": str(e)})
            raise
        self._append({**fields, "provider": self.name, **encode(result)})
        return result

    def _append(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields) + "\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(line)


def read_fvqa_cache(path: Path) -> dict[str, Mapping[str, Any]]:
    """data id -> entry, of a .json or .pkl file.

    Raises:
        SearchError: missing, too large, or not a dict of dicts; a pickle that wants to run code is refused.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SearchError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        raw = path.read_bytes()
    except (OSError, ValueError) as e:  # or a name that no file can have
        raise SearchError(f"{path}: can't be read ({getattr(e, 'strerror', None) or e})") from e
    try:
        content = json.loads(raw) if path.suffix.lower() == ".json" else _PlainUnpickler(io.BytesIO(raw)).load()
    except pickle.UnpicklingError as e:
        raise SearchError(f"{path}: {e}; convert it to JSON in an environment that you trust") from e
    except (ValueError, EOFError, RecursionError, AttributeError, IndexError, KeyError, TypeError, MemoryError) as e:
        raise SearchError(f"{path}: not a search cache ({type(e).__name__})") from e
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise SearchError(f"{path}: not a search cache: an object of data id -> entry is needed")
    return {str(k): v for k, v in content.items()}


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; looks up no class or function, so nothing of the file can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the pickle holds {module}.{name}, not only plain data")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as e:  # or a name that no file can have
        raise SearchError(f"{path}: can't be read ({getattr(e, 'strerror', None) or e})") from e


def _line_key(fields: Mapping[str, Any]) -> str:
    kind = fields["kind"]
    if kind == TEXT:
        return _text_key(fields["query"])
    if kind == IMAGE:
        return json.dumps([IMAGE, fields["image"], fields.get("box"), fields.get("label", "")])
    if kind == PAGE:
        return _page_key(fields["url"], fields.get("goal", ""))
    raise ValueError(f"unknown kind {kind!r}")


def _text_key(query: str) -> str:
    return json.dumps([TEXT, " ".join(query.split()).casefold()])


def _image_key(query: ImageQuery) -> str:
    return json.dumps([IMAGE, query.frame.digest, _box(query), query.label])


def _page_key(url: str, goal: str) -> str:
    return json.dumps([PAGE, url, goal])


def _box(query: ImageQuery) -> list[int] | None:
    """Whole pixels: a box that differs by less shows the same picture."""
    return None if query.region is None else [round(v) for v in query.region.as_tuple()]


def _hits_json(hits: list[Hit]) -> dict[str, Any]:
    return {"hits": [asdict(h) for h in hits]}


def _hits(fields: Mapping[str, Any]) -> list[Hit]:
    return [hit_from(h) for h in fields.get("hits") or [] if isinstance(h, dict)]


def _strings(value: Any) -> list[str]:
    return [str(v) if isinstance(v, str) else "" for v in value] if isinstance(value, (list, tuple)) else []
