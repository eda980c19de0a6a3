"""How the commands print: one rich console on stderr for progress and live steps, stdout only for results."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gog_edge.sanitize import printable, printable_json


class _Console(Console):
    """Strings are printed as they are: no markup, no emoji names, nothing that steers a terminal. What is styled is a
    `Text` (see `styled`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Its reader went away: rich would end the process with code 1, `run` knows better."""
        raise BrokenPipeError


def stderr() -> Console:
    """Progress, steps and notes."""
    return _Console(stderr=True, soft_wrap=not sys.stderr.isatty())


def stdout() -> Console:
    """Results for people. Wide enough not to break lines when it is not a terminal."""
    return _Console() if sys.stdout.isatty() else _Console(width=160, soft_wrap=True)


def styled(pattern: str, *values: object) -> Text:
    """`pattern` is markup of ours with a `{}` for each value; values are text of anybody's (a result, a page, a file
    name, a policy) and can neither style nor send a terminal an escape sequence."""
    return Text.from_markup(pattern.format(*(escape(printable(str(v))) for v in values)), emoji=False)


def one_line(text: str) -> str:
    """`text` with white space collapsed."""
    return " ".join(text.split())


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else there. Its strings may hold anything that argv or a file can."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    document = json.dumps(value, ensure_ascii=not unicode, indent=1 if sys.stdout.isatty() else None)
    sys.stdout.write(printable_json(document) + "\n")


class _Remaining(TimeRemainingColumn):
    """'eta 0:00:12'; nothing where the end is unknown or reached."""

    def render(self, task: Task) -> Text:
        if task.total is None or task.finished:
            return Text("")
        return Text("eta ").append_text(super().render(task))


class _Bar(Progress):
    """Leaves its last state on the screen when the job was done, and nothing when it failed: the error is alone."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.transient = kind is not None
        super().__exit__(kind, error, trace)


def progress_bar() -> Progress:
    """The bar of every long job."""
    return _Bar(
        TextColumn("{task.description}", justify="left", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        _Remaining(),
        console=stderr(),
        transient=False,
    )


def human_bytes(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the loop always returns")
