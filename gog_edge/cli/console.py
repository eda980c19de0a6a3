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


def stderr() -> Console:
    """Progress, steps and notes."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def stdout() -> Console:
    """Results for people. Wide enough not to break lines when it is not a terminal."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160, soft_wrap=True)


def plain(text: str) -> str:
    """Somebody else's text (of a result, a page, a file name, a policy) as markup that prints it as it is: it can
    neither style nor send a terminal an escape sequence."""
    return escape(printable(text))


def one_line(text: str) -> str:
    """`plain`, with white space collapsed."""
    return plain(" ".join(text.split()))


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else there."""
    document = json.dumps(value, ensure_ascii=False, indent=1 if sys.stdout.isatty() else None)
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
        TextColumn("{task.description}", justify="left"),
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
