"""A trace as a file; the name says which kind: a page, data, or a time line for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from gog_edge.disk.files import write_text
from gog_edge.errors import UsageError
from gog_edge.runtime.telemetry import Trace
from gog_edge.runtime.trace.html import page
from gog_edge.runtime.trace.perfetto import perfetto_events

_KINDS: Mapping[str, Callable[[Trace], str]] = {
    ".html": page,
    ".perfetto.json": lambda trace: json.dumps(perfetto_events(trace), ensure_ascii=False) + "\n",
    ".json": lambda trace: json.dumps(trace.to_json(), ensure_ascii=False, indent=1) + "\n",
}


def writer_of(path: str | Path) -> Callable[[Trace], str]:
    """What writes the kind of trace that the name asks for.

    Raises:
        UsageError: the name has none of the endings.
    """
    for ending, writer in _KINDS.items():
        if Path(path).name.endswith(ending):
            return writer
    raise UsageError(f"the trace {path}: the name must end in {', '.join(list(_KINDS)[:-1])} or .json")


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace: NAME.html to look at, with the pictures inside; NAME.perfetto.json for Perfetto or chrome://tracing;
    NAME.json to process.

    Raises:
        UsageError: another ending. OSError: it can't be written.
    """
    write_text(Path(path), writer_of(path)(trace))
