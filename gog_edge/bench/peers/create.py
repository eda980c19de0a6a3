"""From the options of a command to subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gog_edge.bench.peers import environment
from gog_edge.bench.peers.registry import Wanted, check_address, find
from gog_edge.bench.peers.worker_subject import WorkerSubject
from gog_edge.errors import BenchError, UsageError


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` options by the name of their peer.

    Raises:
        UsageError: no such form, or no such peer.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"{option} {text!r}: NAME=VALUE is needed")
        found[find(name).name] = value
    return found


def create(wanted: Wanted, models: Mapping[str, str], pythons: Mapping[str, str], threads: int = 0) -> WorkerSubject:
    """The subject of a peer, not yet started.

    Args:
        models: folders and addresses by peer. pythons: interpreters that replace a peer's own environment.

    Raises:
        BenchError: its environment or its model is missing; says how to get it.
        UsageError: an address is none.
    """
    peer = wanted.peer
    model = wanted.model or models.get(peer.name, "")
    if not model:
        raise BenchError(f"{peer.name} needs its model: {_model_hint(wanted)}")
    if peer.served:
        check_address(model)
    elif not Path(model).is_dir():
        raise BenchError(f"{peer.name}: {model} is not a folder: {_model_hint(wanted)}")
    python = Path(pythons[peer.name]) if peer.name in pythons else environment.require(peer)
    options = {**wanted.options, **({"threads": threads} if threads else {})}
    mends = {
        "package": f"gog-edge bench peers install {peer.name}",
        "model": _model_hint(wanted),
    }
    return WorkerSubject(wanted.label, peer.worker, python, model, options, mends)


def _model_hint(wanted: Wanted) -> str:
    name = wanted.peer.name
    if wanted.peer.served:
        return f"--compare {name}:http://host:port/v1, the address of a server that you started"
    if wanted.peer.checkpoint:
        return f"--peer-model {name}=CHECKPOINT"
    return f"--peer-model {name}=DIR (made by: gog-edge bench peers prepare {name} CHECKPOINT -o DIR)"
