"""The results file: one JSON line per question after a header line that says how they were made. Resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gog_edge.errors import UsageError

HEADER = "gog_edge_eval"
VERSION = 1


@dataclass
class ResultsFile:
    """Appends results; every line is flushed to the disk, so a kill loses at most the question that was running.

    Args:
        settings: what makes results comparable (bundle, data set, options). A file with other settings is refused.

    Raises:
        UsageError: the file was made with other settings, or is something else.
    """

    path: Path
    settings: Mapping[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    _stream: IO[str] | None = None

    def __post_init__(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            header, rows, good = _read(self.path)
            if header.get("settings") != _plain(self.settings):
                raise UsageError(
                    f"{self.path}: made with other settings ({_difference(header.get('settings'), self.settings)}); "
                    "give another --out, or --restart"
                )
            # A question that failed for a reason of the machine's is asked again.
            self.done = {str(r["id"]): r for r in rows if not r.get("retry")}
            if good < self.path.stat().st_size:
                os.truncate(self.path, good)
            self._stream = self.path.open("a", encoding="utf-8")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("w", encoding="utf-8")
            self._line({HEADER: VERSION, "settings": _plain(self.settings)})

    def append(self, row: dict[str, Any]) -> None:
        """Write one result."""
        self._line(row)
        self.done[str(row["id"])] = row

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _line(self, value: Mapping[str, Any]) -> None:
        if self._stream is None:
            raise UsageError(f"{self.path}: the results file is closed")
        self._stream.write(json.dumps(value) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_results(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(settings, results; the last one of an id counts).

    Raises:
        UsageError: missing, or not a results file.
    """
    where = Path(path)
    if not where.is_file():
        raise UsageError(f"{where}: no such results file")
    header, rows, _ = _read(where)
    return dict(header.get("settings", {})), list({str(r["id"]): r for r in rows}.values())


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Header, whole rows, and the number of bytes up to the end of the last whole line."""
    rows: list[dict[str, Any]] = []
    header: dict[str, Any] | None = None
    good = 0
    for line, end in _lines(path):
        try:
            value = json.loads(line)
        except ValueError:
            break  # a line cut off by a kill
        if header is None:
            if not isinstance(value, dict) or value.get(HEADER) != VERSION:
                break
            header = value
        elif isinstance(value, dict) and "id" in value:
            rows.append(value)
        good = end
    if header is None:
        raise UsageError(f"{path}: not a results file of this version; give another --out, or --restart")
    return header, rows, good


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            end += len(line)
            if line.endswith(b"\n"):
                yield line, end


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    before, after = old if isinstance(old, dict) else {}, _plain(new)
    names = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
    return ", ".join(f"{n}: {before.get(n)!r} then, {after.get(n)!r} now" for n in names[:3])[:300]
