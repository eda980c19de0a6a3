"""From the options of a command to subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gog_edge.bench.peers import PeerOptions
from gog_edge.crop import PixelBox
from gog_edge.errors import BenchError, UsageError
from gog_edge_peers import environment
from gog_edge_peers.registry import PEERS, Wanted, check_address, find, parse
from gog_edge_peers.worker_subject import WorkerSubject


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


def create_all(compare: str, given: PeerOptions, skipped: dict[str, str]) -> list[WorkerSubject]:
    """The peers that were asked for and are available; the others go to `skipped` with the reason.

    Raises:
        UsageError: what was given makes no sense.
    """
    folders, interpreters = pairs(given.models, "--peer-model"), pairs(given.pythons, "--peer-python")
    servers = pairs(given.programs, "--peer-program")
    found = []
    for wanted in parse(compare):
        try:
            found.append(create(wanted, folders, interpreters, given.threads, servers))
        except BenchError as e:
            skipped[wanted.label] = str(e)
    return found


def create(
    wanted: Wanted,
    models: Mapping[str, str],
    pythons: Mapping[str, str],
    threads: int = 0,
    programs: Mapping[str, str] | None = None,
) -> WorkerSubject:
    """The subject of a peer, not yet started.

    Args:
        models: folders and addresses by peer. pythons: interpreters that replace a peer's own environment.
        programs: servers to start, by peer, where they are not on the PATH.

    Raises:
        BenchError: its environment or its model is missing; says how to get it.
        UsageError: an address is invalid, or a peer has no program of its own.
    """
    for name in programs or {}:
        if not find(name).starter:
            raise UsageError(f"--peer-program {name}: only {_starters()} has a program that is started")
    peer = wanted.peer
    model = wanted.model or models.get(peer.name, "")
    if not model:
        raise BenchError(f"{peer.name} needs its model: {_model_hint(wanted)}")
    started = bool(peer.starter) and "://" not in model
    if peer.served and not started:
        check_address(model)
    elif not Path(model).is_dir():
        raise BenchError(f"{peer.name}: {model} is not a folder: {_model_hint(wanted)}")
    python = Path(pythons[peer.name]) if peer.name in pythons else environment.require(peer)
    options = {**wanted.options, **({"threads": threads} if threads else {})}
    if started and (program := (programs or {}).get(peer.name)):
        options["program"] = program
    mends = {
        "package": f"--peer-program {peer.name}=PATH" if started else f"gog-edge bench peers install {peer.name}",
        "model": _model_hint(wanted),
    }
    return WorkerSubject(wanted.label, peer.starter if started else peer.worker, python, model, options, mends)


def create_crops(box: PixelBox, pixels: int, patch: int) -> list[WorkerSubject]:
    """The fast image processor of transformers on one thread and on two, each in a process of its own.

    Args:
        box: in pixels of the picture that a turn gets. pixels: the most of the result. patch: side of a patch.
    """
    python = environment.interpreter(PEERS["transformers"])
    if not python.is_file():
        return []
    wanted = {"box": [box.x0, box.y0, box.x1, box.y1], "pixels": pixels, "patch": patch}
    names = {1: "transformers, fast processor", 2: "transformers 2 threads"}
    return [WorkerSubject(n, "run_hf_crop", python, "", {**wanted, "threads": t}) for t, n in names.items()]


def _model_hint(wanted: Wanted) -> str:
    name = wanted.peer.name
    address = f"--compare {name}:http://host:port/v1, the address of a server that you started"
    if wanted.peer.served and (wanted.model or not wanted.peer.starter):
        return address
    if wanted.peer.checkpoint:
        return f"--peer-model {name}=CHECKPOINT"
    made = f"--peer-model {name}=DIR (made by: gog-edge bench peers prepare {name} CHECKPOINT -o DIR)"
    return f"{made}, or {address}" if wanted.peer.served else made


def _starters() -> str:
    return ", ".join(name for name, peer in PEERS.items() if peer.starter)
