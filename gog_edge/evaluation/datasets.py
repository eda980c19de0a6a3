"""Reading data-set files: JSONL, JSON, parquet (pyarrow, from the `eval` extra), or a folder of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gog_edge.errors import DatasetError
from gog_edge.evaluation.formats import by_name, detect, samples_of
from gog_edge.evaluation.samples import Sample

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def read_dataset(path: str | Path, *, form: str = "", limit: int = 0) -> tuple[list[Sample], list[str]]:
    """Samples of a file or of all data files in a folder, and one line per row that can't be used.

    Args:
        form: name of the format; recognised when empty.
        limit: stop after this many samples; 0 reads all.

    Raises:
        DatasetError: no such file, an unknown format, no usable row, or an id that is there twice.
    """
    root = Path(path)
    files = sorted(f for f in root.iterdir() if f.suffix.lower() in SUFFIXES) if root.is_dir() else [root]
    if not files or not files[0].exists():
        raise DatasetError(f"{root}: no data set there ({', '.join(SUFFIXES)})")
    samples: dict[str, Sample] = {}
    problems: list[str] = []
    for file in files:
        for number, row in _rows(file, problems):
            parquet = (str(file), number) if file.suffix.lower() == ".parquet" else None
            chosen = by_name(form, row) if form else detect(row)
            try:
                for sample in samples_of(row, chosen, number=number, parquet=parquet):
                    if sample.id in samples:
                        raise DatasetError(f"{file}:{number}: the id {sample.id!r} is there twice")
                    samples[sample.id] = sample
                    if limit and len(samples) >= limit:
                        return list(samples.values()), problems
            except DatasetError as e:
                if "there twice" in str(e):
                    raise
                problems.append(f"{file.name}:{number}: {e}")
    if not samples:
        raise DatasetError(f"{root}: no usable question in it ({problems[0] if problems else 'it is empty'})")
    return list(samples.values()), problems


def draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """`count` of the samples in their order, chosen by id and seed: data sets are often sorted by kind.

    A larger count adds to a smaller one, and neither the order nor the number of rows decides about a sample: a run
    that is repeated with a larger count continues.
    """

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}:{sample.id}".encode()).digest()

    kept = {sample.id for sample in sorted(samples, key=rank)[:count]}
    return [sample for sample in samples if sample.id in kept]


def parquet_image(path: str, row: int, column: str, index: int) -> bytes:
    """The bytes of one picture inside of a parquet file.

    Raises:
        DatasetError: it is not there, or pyarrow is missing.
    """
    at = 0
    file = _parquet(Path(path))
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < at + count:
            value = file.read_row_group(group, columns=[column]).column(0)[row - at].as_py()
            values = value if isinstance(value, list) else [value]
            found = values[index] if index < len(values) else None
            data = found.get("bytes") if isinstance(found, Mapping) else found
            if isinstance(data, (bytes, bytearray)):
                return bytes(data)
            break
        at += count
    raise DatasetError(f"{path}: row {row} has no picture {index} in column {column!r}")


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path, problems)
    elif suffix == ".json":
        yield from _json_rows(path)
    else:
        raise DatasetError(f"{path}: can't read this; data sets are {', '.join(SUFFIXES)}")


def _json_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as e:
                    problems.append(f"{path.name}:{number}: not JSON ({e})")
                    continue
                if isinstance(row, dict):
                    yield number, row
                else:
                    problems.append(f"{path.name}:{number}: not a JSON object")
    except OSError as e:
        raise DatasetError(f"{path}: can't be read ({e.strerror or e})") from e


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except OSError as e:
        raise DatasetError(f"{path}: can't be read ({e.strerror or e})") from e
    except (ValueError, RecursionError) as e:
        raise DatasetError(f"{path}: not valid JSON ({e})") from e
    if isinstance(document, dict):
        lists = [v for v in document.values() if isinstance(v, list)]
        rows = lists[0] if len(lists) == 1 else list(document.values())
    else:
        rows = document
    for number, row in enumerate(rows if isinstance(rows, list) else [], start=1):
        if isinstance(row, dict):
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows without their pictures' bytes: a `{"bytes": …}` is replaced by a mark that it is there."""
    file = _parquet(path)
    number = 0
    for batch in file.iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield number, {name: _without_bytes(value) for name, value in row.items()}
            number += 1


def _without_bytes(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return b"" if not value else b"."
    if isinstance(value, dict):
        return {k: _without_bytes(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_bytes(v) for v in value]
    return value


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as e:
        raise DatasetError(f"{path}: parquet needs pyarrow: pip install 'gog-edge[eval]'") from e
    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as e:
        raise DatasetError(f"{path}: can't be read as parquet ({' '.join(str(e).split())[:200]})") from e
