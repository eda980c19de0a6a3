"""`--rerun`: a recording of the questions for Rerun, of the commands that ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gog_edge.errors import UsageError

if TYPE_CHECKING:
    from gog_edge.integrations.rerun_log import RerunLog

rerun_option = click.option(
    "--rerun", metavar="TARGET", help="Log to a recording for Rerun (out.rrd) or a viewer (rerun+http://…)."
)


def open_log(target: str) -> RerunLog:
    """The log behind `--rerun`.

    Raises:
        UsageError: the extra is missing, or the target can't be written.
    """
    try:
        from gog_edge.integrations.rerun_log import RerunLog
    except ImportError as e:
        raise UsageError(f"--rerun needs {e.name} (Python 3.11 or later): pip install 'gog-edge[rerun]'") from e
    return RerunLog(target)
