"""How `gog-edge bench` finds its subcommands: a scenario needs none, and those of the peers may not be installed."""

from __future__ import annotations

import click

from gog_edge.bench.peers import ADVICE, find_peers
from gog_edge.errors import UsageError


class DefaultRun(click.Group):
    """`gog-edge bench encode` is `gog-edge bench run encode`: anything that is not a sub-command is a scenario.

    `bench --self-check` is `bench self-check`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--self-check" in args:
            args = ["self-check", *(a for a in args if a != "--self-check")]
        if not args or (args[0] not in self.list_commands(ctx) and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "peers"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return peers_command() if cmd_name == "peers" else super().get_command(ctx, cmd_name)


def peers_command() -> click.Command:
    """What the distribution of the peers brings; without it, a command that says how to get it."""
    peers = find_peers()
    if peers is not None:
        return peers.command

    def missing() -> None:
        raise UsageError(f"bench peers: {ADVICE}")

    anything = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    return click.Command("peers", anything, missing, help="Programs to compare with (not installed).")
