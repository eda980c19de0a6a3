"""Options of the camera scenario of `gog-edge bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gog_edge.cli.common.options import SECONDS
from gog_edge.errors import UsageError

if TYPE_CHECKING:
    from gog_edge.bench.scenarios.camera import Stream

Command = TypeVar("Command", bound=Callable[..., Any])


def camera_options(command: Command) -> Command:
    """What the camera shows, how often, and how long an answer may take."""
    folder = click.Path(path_type=Path, exists=True, file_okay=False)
    for option in (
        click.option("--index", type=folder, help="camera: a local index that the policy may search."),
        click.option("--question", help="camera: what is asked about every frame."),
        click.option("--frames", type=folder, help="camera: a folder of images to show; default: generated ones."),
        click.option("--deadline", type=SECONDS, help="camera: from taking a frame to its answer; default: 1s."),
        click.option("--fps", multiple=True, type=float, help="camera: frames per second; default: 1, 5 and 15."),
    ):
        command = option(command)
    return command


def stream_of(given: Mapping[str, Any]) -> Stream:
    """The stream that these options mean.

    Raises:
        UsageError: a rate or a deadline that is impossible.
    """
    from gog_edge.bench.scenarios.camera import Stream

    known = {name: given[name] for name in ("deadline", "frames", "question", "index") if given[name] is not None}
    if rates := given["fps"]:
        known["rates"] = rates
    stream = Stream(**known)
    if min(stream.rates) <= 0 or stream.deadline <= 0:
        raise UsageError("--fps and --deadline must be above 0")
    return stream
