"""`--rerun`, `--mcap`, `--foxglove`: what the questions of a command log to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gog_edge.cli.common.console import stderr
from gog_edge.errors import UsageError

if TYPE_CHECKING:
    from gog_edge.agent.camera.watch import Sighting
    from gog_edge.image.frame import Frame
    from gog_edge.integrations.timeline import TimeLine
    from gog_edge.types import Event

_Command = TypeVar("_Command", bound=Callable[..., Any])

rerun_option = click.option(
    "--rerun", metavar="TARGET", help="Log to a recording for Rerun (out.rrd) or a viewer (rerun+http://…)."
)
mcap_option = click.option(
    "--mcap", metavar="FILE", type=click.Path(path_type=Path), help="Log to a file for Foxglove (out.mcap)."
)
foxglove_option = click.option(
    "--foxglove", metavar="[HOST:]PORT", help="Serve the log live to Foxglove (ws://127.0.0.1:PORT)."
)


class Logs:
    """The logs of a command, all of them told the same; none of them is fine."""

    def __init__(self, logs: Sequence[TimeLine]) -> None:
        self._logs = logs

    def asked(self, frames: Sequence[Frame], question: str) -> None:
        """A question begins."""
        for log in self._logs:
            log.asked(frames, question)

    def shown(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, logged as they pass."""
        for log in self._logs:
            events = log.shown(events)
        return events

    def seen(self, sightings: Iterator[Sighting], question: str) -> Iterator[Sighting]:
        """What a camera's frames brought, logged as it passes."""
        for one in sightings:
            for log in self._logs:
                log.sighting(one.frame, one.number, one.taken_at, one.answer, question)
            yield one


@contextmanager
def open_logs(rerun: str | None, mcap: Path | None, foxglove: str | None = None) -> Iterator[Logs]:
    """The logs behind the options, closed at the end.

    Raises:
        UsageError: an extra is missing, or a target can't be written.
    """
    logs: list[TimeLine] = []
    with ExitStack() as stack:
        if rerun is not None:
            logs.append(stack.enter_context(_rerun(rerun)))
        if mcap is not None or foxglove is not None:
            logs.append(stack.enter_context(_foxglove(mcap, foxglove)))
        yield Logs(logs)


def _rerun(target: str) -> TimeLine:
    try:
        from gog_edge.integrations.rerun_log import RerunLog
    except ImportError as e:
        raise UsageError(f"--rerun needs {e.name} (Python 3.11 or later): pip install 'gog-edge[rerun]'") from e
    return RerunLog(target)


def _foxglove(mcap: Path | None, served: str | None) -> TimeLine:
    address = None if served is None else _address(served)
    try:
        from gog_edge.integrations.foxglove_log import FoxgloveLog
    except ImportError as e:
        option = "--mcap" if served is None else "--foxglove"
        raise UsageError(f"{option} needs {e.name}: pip install 'gog-edge[foxglove]'") from e
    log = FoxgloveLog(mcap, address)
    if address is not None:
        stderr().print(f"serving Foxglove at ws://{address[0]}:{log.port}", markup=False)
    return log


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535 or "/" in host:
        raise UsageError(f"--foxglove {text!r} is no port (8765) and no address (0.0.0.0:8765)")
    return host or "127.0.0.1", int(port)
