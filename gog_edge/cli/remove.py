"""`gog-edge remove NAME`: delete bundles of the library."""

from __future__ import annotations

import click

from gog_edge import library
from gog_edge.cli.common.console import stderr


@click.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
def command(names: tuple[str, ...]) -> None:
    """Delete bundles of the library by name; bundles elsewhere are not touched."""
    for name in names:
        library.remove(name)
        stderr().print(f"removed {name}")
