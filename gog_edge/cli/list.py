"""`gog-edge list`: the bundles of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from gog_edge import library
from gog_edge.bundle import MANIFEST, Bundle
from gog_edge.cli.common.console import human_bytes, print_json, stderr, stdout
from gog_edge.errors import BundleError


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def command(as_json: bool) -> None:
    """List the bundles of the library, the newest first; the default has a star.

    The library is $GOG_EDGE_LIBRARY, else gog-edge/bundles in the user's data folder.
    """
    default = library.default()
    rows = [_row(name, library.place(name), default) for name in library.names()]
    if default is not None and all(not row["default"] for row in rows):
        rows.append(_row(str(default), default, default))
    if as_json:
        print_json(rows)
        return
    if not rows:
        stderr().print(
            f"the library {library.directory()} is empty: gog-edge export CHECKPOINT fills it",
            soft_wrap=True,
        )
        return
    table = Table(box=None)
    for column in ("", "name", "made for", "size", "exported"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for row in rows:
        star = "*" if row["default"] else ""
        if "problem" in row:
            table.add_row(star, row["name"], row["problem"])
        else:
            what = f"{row['family']}, {row['precision']}, {row['backend']}"
            table.add_row(star, row["name"], what, human_bytes(row["bytes"]), row["created"])
    stdout().print(table)


def _row(name: str, path: Path, default: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "path": str(path), "default": path == default}
    try:
        manifest = Bundle.open(path).manifest
    except BundleError as e:  # of another version, or damaged: it can still be removed
        return {**row, "problem": str(e)}
    return {
        **row,
        "family": manifest.family,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "bytes": sum(d.size for d in manifest.files.values()) + (path / MANIFEST).stat().st_size,
        "created": str(manifest.provenance.get("created", "")),
    }
