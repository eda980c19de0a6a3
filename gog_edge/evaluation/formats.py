"""The published formats as data: which field holds the id, the question, the answers, the pictures and the skill.

Field names are alternatives in order; the first that is there counts. A format is recognised by fields that only it
has; `--format` overrides.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gog_edge.disk.paths import is_address
from gog_edge.errors import DatasetError
from gog_edge.evaluation.samples import ImageRef, Sample

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How rows of one data set become samples. `marks`: fields that identify the format, all of them needed."""

    name: str
    marks: tuple[str, ...]
    id: tuple[str, ...]
    question: tuple[str, ...]
    answers: tuple[str, ...]  # everything found in any of them is accepted
    images: tuple[str, ...]
    skill: tuple[str, ...] = ()
    rows: Callable[[Row], Iterator[Row]] | None = None  # one record into several questions


def _livevqa_rows(row: Row) -> Iterator[Row]:
    """An article with questions of two levels becomes one row per question; flat rows pass."""
    levels = [(name, row[name]) for name in ("level1_qas", "level2_qas") if row.get(name)]
    if not levels:
        yield row
    for name, entries in levels:
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if isinstance(entry, Mapping):
                base = {k: v for k, v in row.items() if k not in ("level1_qas", "level2_qas")}
                identity = f"{row.get('id', row.get('sample_id', ''))}/{name[:6]}/{number}"
                yield {**base, **entry, "id": identity, "skill": name[:6]}


FORMATS: tuple[Format, ...] = (
    Format(  # FVQA and InfoSeek as MMSearch-R1 publishes them (parquet)
        "fvqa",
        ("prompt", "reward_model"),
        ("data_id", "id"),
        ("prompt",),
        ("reward_model",),
        ("images", "image_urls"),
        ("category", "data_source"),
    ),
    Format(
        "simplevqa",
        ("question", "answer", "atomic_question"),
        ("data_id", "id"),
        ("question",),
        ("answer",),
        ("image", "image_path", "image_url"),
        ("vqa_category", "original_category", "language"),
    ),
    Format(
        "mmsearch",
        ("query", "gt_answer"),
        ("sample_id", "id"),
        ("query",),
        ("gt_answer", "alternative_gt_answers"),
        ("query_image", "image_path", "query_image_url"),
        ("area", "subfield"),
    ),
    Format(
        "livevqa",
        ("level1_qas",),
        ("id", "question_id", "sample_id"),
        ("question", "query"),
        ("Ground_Truth_List", "Ground_Truth", "ground_truth", "answer"),
        ("img_path", "img_paths", "image_path", "image", "img_urls"),
        ("skill", "level", "category", "topic"),
        _livevqa_rows,
    ),
    Format(
        "livevqa",
        ("Ground_Truth",),
        ("id", "question_id", "sample_id"),
        ("question", "query"),
        ("Ground_Truth_List", "Ground_Truth"),
        ("img_path", "img_paths", "image_path", "image", "img_urls"),
        ("level", "category", "topic"),
    ),
    Format(
        "webwatcher",
        ("prompt", "file_path"),
        ("question_id", "id"),
        ("prompt",),
        ("answers", "answer"),
        ("file_path",),
        ("source", "category"),
    ),
    Format(
        "dynvqa",
        ("question", "image_url", "golden_query"),
        ("question_id", "id"),
        ("question",),
        ("answer", "answers"),
        ("image_url", "image", "image_path"),
        ("skill", "category", "type", "domain"),
    ),
    Format(
        "dynvqa",
        ("question", "image_url", "gloden_query"),  # older files spell it so
        ("question_id", "id"),
        ("question",),
        ("answer", "answers"),
        ("image_url", "image", "image_path"),
        ("skill", "category", "type", "domain"),
    ),
    Format(
        "dynvqa",
        ("question", "image_url", "question_id"),
        ("question_id", "id"),
        ("question",),
        ("answer", "answers"),
        ("image_url", "image", "image_path"),
        ("skill", "category", "type", "domain"),
    ),
    Format(  # our own
        "gog",
        ("question", "answers"),
        ("id",),
        ("question",),
        ("answers",),
        ("image", "images"),
        ("skill",),
    ),
)
NAMES = tuple(dict.fromkeys(f.name for f in FORMATS))

_MARKER = re.compile(r"<image>|<\|vision_start\|>.*?<\|vision_end\|>", re.DOTALL)
_LEAD = "Here is the image and the question:"


def detect(row: Row) -> Format:
    """The format of a row.

    Raises:
        DatasetError: none fits.
    """
    for candidate in FORMATS:
        if all(mark in row for mark in candidate.marks):
            return candidate
    raise DatasetError(f"unknown format: fields {', '.join(sorted(map(str, row)))[:200]}; give --format")


def by_name(name: str, row: Row) -> Format:
    """The variant of a named format that fits a row best.

    Raises:
        DatasetError: there is no such format.
    """
    variants = [f for f in FORMATS if f.name == name]
    if not variants:
        raise DatasetError(f"no format {name!r}; known: {', '.join(NAMES)}")
    return next((f for f in variants if all(m in row for m in f.marks)), variants[-1])


def samples_of(row: Row, form: Format, *, number: int, parquet: tuple[str, int] | None = None) -> Iterator[Sample]:
    """The samples of one row.

    Args:
        number: of the row; the id where the data set has none.
        parquet: (file, row in it) when pictures are inside of a parquet file.

    Raises:
        DatasetError: no question, no answer, or no picture.
    """
    for inner in form.rows(row) if form.rows is not None else (row,):
        identity = _text(_first(inner, form.id)) or str(number)
        question = question_text(_first(inner, form.question))
        answers = tuple(dict.fromkeys(a for name in form.answers for a in answer_texts(inner.get(name))))
        images = _images(inner, form, parquet)
        for what, value in (("question", question), ("answer", answers), ("picture", images)):
            if not value:
                raise DatasetError(f"{identity}: no {what} ({form.name} format)")
        held_out = inner.get("held_out")
        yield Sample(
            id=identity,
            question=question,
            answers=answers,
            images=images,
            skill=_text(_first(inner, form.skill)) or "all",
            held_out=held_out if isinstance(held_out, bool) else None,
            target_boxes=_boxes(inner.get("target_boxes") or [inner.get("target_box")]),
            urls=tuple(u for u in strings(inner.get("image_urls") or inner.get("image_url")) if u.startswith("http")),
        )


def question_text(value: Any) -> str:
    """The question itself, out of a string or chat messages; image markers and instruction leads removed."""
    if isinstance(value, list):
        said = [m for m in value if isinstance(m, Mapping) and m.get("role", "user") == "user"]
        value = said[-1].get("content") if said else ""
        if isinstance(value, list):
            value = " ".join(str(p.get("text", "")) for p in value if isinstance(p, Mapping))
    text = _MARKER.sub(" ", value) if isinstance(value, str) else ""
    text = text.rpartition(_LEAD)[2] if _LEAD in text else text
    return " ".join(text.split())


def answer_texts(value: Any) -> list[str]:
    """Accepted answers out of a string, number, nested lists with nulls, JSON in a string, or a reward_model record."""
    if value is None or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return ["yes" if value else "no"] if isinstance(value, bool) else []
    if isinstance(value, Mapping):
        found: list[str] = []
        for name in ("ground_truth", "target", "answer", "text", "value", "candidate_answers"):
            found += answer_texts(value.get(name))
        return found
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in answer_texts(v)]
    text = str(value).strip()
    if text[:1] in "[{" and text:
        try:
            return answer_texts(json.loads(text))
        except ValueError:
            return [text]
    return [text] if text else []


def strings(value: Any) -> list[str]:
    """Strings of a string or a list."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, str) and v]


def _images(row: Row, form: Format, parquet: tuple[str, int] | None) -> tuple[ImageRef, ...]:
    for column in form.images:
        value = row.get(column)
        values = value if isinstance(value, (list, tuple)) else [value]
        found = tuple(r for i, v in enumerate(values) if (r := _image(v, column, i, parquet)) is not None)
        if found:
            return found
    return ()


def _image(value: Any, column: str, index: int, parquet: tuple[str, int] | None) -> ImageRef | None:
    if isinstance(value, Mapping):
        if value.get("bytes") is not None and parquet is not None:
            return ImageRef("parquet", parquet[0], parquet[1], column, index)
        value = value.get("url") or value.get("path") or value.get("image")
    if isinstance(value, (bytes, bytearray)) and parquet is not None:
        return ImageRef("parquet", parquet[0], parquet[1], column, index)
    if not isinstance(value, str) or not value.strip():
        return None
    value = value.strip()
    if is_address(value):
        return ImageRef("url", value)
    if value.startswith("data:image/"):
        return ImageRef("base64", value.partition(",")[2])
    # Base64 of JPEG, PNG, WebP (RIFF) or GIF begins so; no file name is that long.
    if len(value) > 256 and value.startswith(("/9j/", "iVBOR", "UklGR", "R0lGOD")):
        return ImageRef("base64", value)
    return ImageRef("file", value)


def _boxes(value: Any) -> tuple[tuple[float, float, float, float], ...]:
    """Valid boxes; anything else in the list is left out."""
    found: list[tuple[float, float, float, float]] = []
    for box in value if isinstance(value, list) else ():
        if isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box):
            x0, y0, x1, y1 = (float(v) for v in box)
            if all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1:
                found.append((x0, y0, x1, y1))
    return tuple(found)


def _first(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[n] for n in names if row.get(n) not in (None, "", [])), None)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    return "" if value is None else str(value).strip()
