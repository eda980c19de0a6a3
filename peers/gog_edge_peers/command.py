"""`gog-edge bench peers`: environments of the programs to compare with, and checkpoints in their formats."""

from __future__ import annotations

from pathlib import Path

import click

from gog_edge.cli.common.console import stderr, stdout, styled


@click.group("peers")
def command() -> None:
    """Programs to compare with: list, install, remove, prepare (convert a checkpoint)."""


@command.command("list")
def list_peers() -> None:
    """Which peers there are, and which are installed."""
    from gog_edge_peers import environment
    from gog_edge_peers.registry import PEERS

    for peer in PEERS.values():
        found = environment.installed(peer)
        if peer.served:
            state = "a server of yours"
        else:
            state = ", ".join(f"{k} {v}" for k, v in found.items()) or "not installed"
        stdout().print(styled("{} {}\n{} [dim]{}[/]", f"{peer.name:18}", peer.about, f"{'':18}", state))


@command.command("install")
@click.argument("name")
@click.option("--converter", is_flag=True, help="Also install what conversion needs (torch: some GB).")
@click.option("--python", "base", type=click.Path(path_type=Path, exists=True), help="Create it with this Python.")
@click.option("--dry-run", is_flag=True, help="Only show the commands.")
def install(name: str, converter: bool, base: Path | None, dry_run: bool) -> None:
    """Make the environment of peer NAME under the user's cache folder, or bring it up to date."""
    import shlex

    from gog_edge_peers import environment
    from gog_edge_peers.registry import find

    peer = find(name)
    if dry_run:
        for step in environment.commands(peer, converter=converter, base=base):
            stdout().print(shlex.join(step))
        return
    python = environment.install(peer, _show, converter=converter, base=base)
    stderr().print(f"{name} is ready: {python}")


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Delete the environment of peer NAME."""
    from gog_edge_peers import environment
    from gog_edge_peers.registry import find

    peer = find(name)
    gone = environment.remove(peer)
    stderr().print(f"removed {environment.folder(peer)}" if gone else f"{name} was not installed")


@command.command("prepare")
@click.argument("name")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option("--group-size", type=click.IntRange(min=16), help="Weights that share a scale: 128, or 32 (ORT).")
@click.option("--llama-cpp", type=click.Path(path_type=Path), help="Folder with a llama.cpp build.")
@click.option("--python", "python", type=click.Path(path_type=Path), help="Use this Python's packages instead.")
def prepare(
    name: str, checkpoint: Path, output: Path, group_size: int | None, llama_cpp: Path | None, python: Path | None
) -> None:
    """Convert CHECKPOINT (a Hugging Face folder) to int4 in the format of peer NAME, with that peer's own tool."""
    from gog_edge_peers import environment
    from gog_edge_peers import prepare as conversion
    from gog_edge_peers.registry import find

    peer = find(name)
    tool = python or environment.interpreter(peer)
    conversion.prepare(peer, conversion.Job(tool, checkpoint, output, group_size or 0, llama_cpp), _show)
    stderr().print(f"wrote {output}; next: {conversion.after(peer, output)}")


def _show(text: str) -> None:
    stderr().print(f"$ {text}", style="dim", soft_wrap=True)
