"""Sources of an index: a folder of images with sidecar files, JSONL, or CSV; each yields `Record`s.

A line or file that can't be used is yielded as a `Problem`, so one bad row never stops a run.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, Union

from gog_edge.disk.paths import is_address
from gog_edge.errors import SearchIndexError
from gog_edge.search.local.names import FolderNames, decoded, encoding_of, fallback, readable
from gog_edge.search.local.record import ENTITY, PAGE, Record

_SUFFIXES = ".jpg .jpeg .png .webp .bmp .gif .tif .tiff .heic .heif .avif"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
_COLUMNS = "id title text ocr image images source url relations kind document page"
CSV_COLUMNS = frozenset(_COLUMNS.split())
MAX_SIDECAR_BYTES = 1 << 20
MAX_LINE_CHARS = 4 << 20
_RELATION_PREFIX = "relation:"


@dataclass(frozen=True)
class Problem:
    """Something of the source that can't be used: its kind and one line naming it."""

    kind: str
    line: str


Item = Union[Record, Problem]


def read_source(path: Path, *, kind: str = ENTITY) -> Iterator[Item]:
    """Records of a folder, a `.jsonl`/`.ndjson`/`.json` file or a `.csv`/`.tsv` file, in a stable order.

    Args:
        kind: "entity" or "page", for records that do not say.

    Raises:
        SearchIndexError: there is no such source, or it is of an unknown kind.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_folder(path, kind)
    if not path.is_file():
        raise SearchIndexError(f"{path}: no such file or folder")
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _read_jsonl(path, kind)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, kind)
    raise SearchIndexError(f"{path}: can't index this; give a folder of images, a .jsonl or a .csv file")


def count_items(path: Path) -> int:
    """About how many records a source has (lines, or images), for a progress bar."""
    if path.is_dir():
        return sum(1 for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    with path.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))


def record_from(fields: Mapping[str, Any], base: Path, *, kind: str = ENTITY) -> Record:
    """A record from JSON fields: id, title, text, image(s), source, relations, kind; or document + page.

    Raises:
        ValueError: a field has the wrong type, or nothing is in it.
    """
    title, text = _string(fields, "title"), _string(fields, "text")
    text = text or _string(fields, "ocr")
    identity, source = _string(fields, "id"), _string(fields, "source") or _string(fields, "url")
    relations = {name: targets for name, targets in _relations(fields.get("relations")).items() if targets}
    kind = _string(fields, "kind") or kind
    document, page = _string(fields, "document"), fields.get("page")
    if document and isinstance(page, int):
        kind = PAGE
        identity = identity or f"{document}#{page}"
        title = title or f"{document}, page {page}"
        relations.setdefault("next page", (f"{document}#{page + 1}",))
        if page > 1:
            relations.setdefault("previous page", (f"{document}#{page - 1}",))
    if kind not in (ENTITY, PAGE):
        raise ValueError(f"kind {kind!r}: entity or page")
    images = tuple(i if is_address(i) else str(base / i) for i in _images(fields))
    if not (title or text or images):
        raise ValueError("no title, no text and no image")
    return Record(identity, title, text, source, images, relations, kind)


def _read_jsonl(path: Path, kind: str) -> Iterator[Item]:
    yield from _doubtful(path)
    with _text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if len(line) > MAX_LINE_CHARS:
                yield Problem("line too long", f"{path.name}:{number}: {len(line)} characters")
                continue
            try:
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ValueError("not a JSON object")
                yield from _items(fields, path.parent, kind, f"{path.name}:{number}")
            except (ValueError, RecursionError) as e:
                yield Problem("bad line", f"{path.name}:{number}: {e}")


def _read_csv(path: Path, kind: str) -> Iterator[Item]:
    yield from _doubtful(path)
    with _text(path, newline="") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = max(",;\t|", key=head.count) if path.suffix.lower() == ".csv" else "\t"
        rows = csv.DictReader(stream, delimiter=delimiter)
        try:
            names = [n for n in rows.fieldnames or [] if n]
        except csv.Error as e:
            raise SearchIndexError(f"{path}: the first line can't be read ({e})") from e
        if not CSV_COLUMNS & {n.strip().lower() for n in names}:
            raise SearchIndexError(f"{path}: the first line must name the columns (title, text, image, …)")
        number = 1
        while True:
            number += 1
            try:
                row = next(rows)
                fields = _csv_fields(row)
                yield from _items(fields, path.parent, kind, f"{path.name}:{number}")
            except StopIteration:
                return
            except (ValueError, RecursionError, csv.Error) as e:
                yield Problem("bad line", f"{path.name}:{number}: {e}")


def _csv_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    relations: dict[str, list[str]] = {}
    for raw, value in row.items():
        if not isinstance(raw, str) or not isinstance(value, str) or not value.strip():
            continue
        name = raw.strip().lower()
        if name.startswith(_RELATION_PREFIX):
            relations[raw.strip()[len(_RELATION_PREFIX) :]] = [v.strip() for v in value.split(";") if v.strip()]
        elif name == "relations":
            fields[name] = json.loads(value)
        elif name == "images":
            fields[name] = [v.strip() for v in value.split(";") if v.strip()]
        elif name == "page":
            fields[name] = int(value)
        else:
            fields[name] = value.strip()
    if relations:
        fields["relations"] = {**relations, **_relations(fields.get("relations"))}
    return fields


def _read_folder(folder: Path, kind: str) -> Iterator[Item]:
    """Every image under `folder`, with `NAME.json` (fields) or `NAME.txt` (text; a first line "# …" is the title)."""
    found, names = False, FolderNames()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        found = True
        identity = path.relative_to(folder).with_suffix("").as_posix()
        title = readable(path.stem).replace("_", " ").replace("-", " ").strip()
        own: dict[str, Any] = {"id": identity, "title": title, "image": path.name}
        try:
            yield from _items({**own, **_sidecar(path, names)}, path.parent, kind, str(path.relative_to(folder)))
        except (ValueError, OSError, RecursionError) as e:
            yield Problem("bad sidecar", f"{path.relative_to(folder)}: {e}")
            yield record_from(own, path.parent, kind=kind)
    if not found:
        raise SearchIndexError(f"{folder}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")


def _sidecar(image: Path, names: FolderNames) -> dict[str, Any]:
    for path in (names.find(image.with_suffix(".json")), names.find(image.with_suffix(".txt"))):
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise ValueError(f"{path.name} is larger than {MAX_SIDECAR_BYTES} bytes")
        text = decoded(path.read_bytes())
        if path.suffix == ".json":
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError(f"{path.name} holds no JSON object")
            fields.pop("image", None)
            return fields
        first, _, rest = text.partition("\n")
        if first.startswith("# "):
            return {"title": first[2:].strip(), "text": rest.strip()}
        return {"text": text.strip()}
    return {}


def _items(fields: Mapping[str, Any], base: Path, kind: str, where: str) -> Iterator[Item]:
    """The record of one row; relations that make no sense are reported and the rest is kept."""
    try:
        _relations(fields.get("relations"))
    except ValueError as e:
        yield Problem("bad relations", f"{where}: {e}")
        fields = {name: value for name, value in fields.items() if name != "relations"}
    yield record_from(fields, base, kind=kind)


def _text(path: Path, newline: str | None = None) -> TextIO:
    """A source file as text, whatever program wrote it."""
    with path.open("rb") as stream:
        encoding = encoding_of(stream.read(2))
    return path.open(encoding=encoding, errors=fallback(), newline=newline)


def _doubtful(path: Path) -> Iterator[Problem]:
    """One line if a file is not all in its encoding."""
    with path.open("rb") as stream:
        encoding = encoding_of(stream.read(2))
        stream.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            while piece := stream.read(1 << 20):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            yield Problem("not UTF-8", f"{path.name}: what is no UTF-8 is read as Windows-1252")


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is a {type(value).__name__}, not a string")
    return value


def _images(fields: Mapping[str, Any]) -> list[str]:
    value = fields.get("images", fields.get("image"))
    if value is None or value == "":
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ValueError("field 'image' is not a path or a list of paths")
    if any("\0" in v for v in values):
        raise ValueError("field 'image' holds a zero byte")
    return list(dict.fromkeys(values))


def _relations(value: Any) -> dict[str, tuple[str, ...]]:
    """{"name": "id" or ["id", …]}, or [["name", "id"], …]."""
    if value is None:
        return {}
    if isinstance(value, list):
        pairs: dict[str, list[str]] = {}
        for item in value:
            if not (
                isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) and _is_id(item[1])
            ):
                raise ValueError("relations given as a list hold [name, id] pairs")
            pairs.setdefault(item[0], []).append(str(item[1]))
        return {name: tuple(targets) for name, targets in pairs.items()}
    if not isinstance(value, dict):
        raise ValueError("relations are an object: name -> id or list of ids")
    found: dict[str, tuple[str, ...]] = {}
    for name, targets in value.items():
        targets = [targets] if _is_id(targets) else list(targets) if isinstance(targets, tuple) else targets
        if not isinstance(targets, list) or not all(map(_is_id, targets)):
            raise ValueError(f"relation {name!r} is not an id or a list of ids")
        found[str(name)] = tuple(map(str, targets))
    return found


def _is_id(value: Any) -> bool:
    """Whether a JSON value can name an entry: text or a whole number."""
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
