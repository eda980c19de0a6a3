"""Other programs to compare with. They come with a distribution of its own, gog-edge-peers: docs/adr/0014.

It is found through the entry point "all" of the group "gog_edge.peers".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gog_edge.bench.subject import Subject
from gog_edge.errors import UsageError
from gog_edge.registry import Registry

if TYPE_CHECKING:
    import click

    from gog_edge.crop import PixelBox

ADVICE = "gog-edge-peers is not installed: in a checkout of gog-edge, pip install ./peers"


class PeerSubject(Subject, Protocol):
    """A peer. `about`: its version and model, once it is loaded."""

    about: str


@dataclass(frozen=True)
class PeerOptions:
    """What was given for peers, as `NAME=VALUE`: models, interpreters and servers. `threads`: of each, 0 its choice."""

    models: Sequence[str] = ()
    pythons: Sequence[str] = ()
    programs: Sequence[str] = ()
    threads: int = 0


@dataclass(frozen=True)
class Peers:
    """What the distribution brings.

    `create`: subjects that are not yet started, from the text of `--compare`; those that are not available go to the
    dictionary with the reason. `crop`: subjects whose turn is one crop, from a box, the most pixels of the result and
    the size of a patch; none where nothing is installed. `command`: the group behind `gog-edge bench peers`.
    """

    create: Callable[[str, PeerOptions, dict[str, str]], Sequence[PeerSubject]]
    crop: Callable[[PixelBox, int, int], Sequence[PeerSubject]]
    command: click.Group


PEERS = Registry("gog_edge.peers", Peers)


def find_peers() -> Peers | None:
    """The peers, None without their distribution."""
    return PEERS.get("all")


def create_peers(compare: str | None, given: PeerOptions, skipped: dict[str, str]) -> Sequence[PeerSubject]:
    """What `--compare` asks for.

    Raises:
        UsageError: what was given makes no sense, or the distribution is missing.
    """
    if compare is None:
        return []
    peers = find_peers()
    if peers is None:
        raise UsageError(f"--compare {compare}: {ADVICE}")
    return peers.create(compare, given, skipped)
