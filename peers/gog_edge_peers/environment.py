"""A peer's own virtual environment under the user's cache folder: made only when asked for, commands shown."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gog_edge.disk.paths import cache_directory
from gog_edge.errors import BenchError
from gog_edge_peers.registry import Peer

Show = Callable[[str], None]


def folder(peer: Peer) -> Path:
    """Where the peer's environment lies (not created here)."""
    return cache_directory() / "peers" / peer.name


def interpreter(peer: Peer) -> Path:
    """The environment's Python, whether it exists or not."""
    return folder(peer) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def script(python: Path, name: str) -> Path:
    """A command that a package put beside the environment's Python."""
    return python.parent / (f"{name}.exe" if os.name == "nt" else name)


def require(peer: Peer) -> Path:
    """The Python that runs the peer; our own for a server, which needs only the standard library.

    Raises:
        BenchError: there is no environment; says how to make it.
    """
    if peer.served:
        return Path(sys.executable)
    python = interpreter(peer)
    if not python.is_file():
        raise BenchError(f"{peer.name} has no environment here: gog-edge bench peers install {peer.name}")
    return python


def commands(peer: Peer, *, converter: bool, base: Path | None = None) -> list[list[str]]:
    """What `install` runs, in order."""
    python = str(interpreter(peer))
    packages = [*peer.packages, *(peer.converter if converter else ())]
    make = [str(base or sys.executable), "-m", "venv", str(folder(peer))]
    return [make, [python, "-m", "pip", "install", "--upgrade", *packages]] if packages else []


def install(peer: Peer, show: Show, *, converter: bool = False, base: Path | None = None) -> Path:
    """Make the environment, or bring it up to date; returns its Python. Output of the tools goes to the terminal.

    Args:
        show: gets every command before it runs.
        converter: install what converting a checkpoint needs, too.
        base: the Python to make it from, by default the one that runs this.

    Raises:
        BenchError: the peer needs none, or a command failed.
    """
    steps = commands(peer, converter=converter, base=base)
    if not steps:
        raise BenchError(
            f"{peer.name} is a server that you start yourself: it needs no environment"
            + (" to be spoken to; for converting a checkpoint add --converter" if peer.converter else "")
        )
    for step in steps:
        run(step, show)
    return interpreter(peer)


def remove(peer: Peer) -> bool:
    """Delete the environment; whether there was one."""
    path = folder(peer)
    if not path.exists():
        return False
    shutil.rmtree(path)
    return True


def run(command: Sequence[str], show: Show) -> None:
    """Show a command, run it with its output passed through.

    Raises:
        BenchError: it can't be started or failed.
    """
    show(shlex.join(command))
    try:
        done = subprocess.run(list(command), check=False, env=clean_environment())
    except OSError as e:
        raise BenchError(f"{command[0]} can't be run: {e.strerror or e}") from e
    if done.returncode != 0:
        raise BenchError(f"{Path(command[0]).name} failed with code {done.returncode}: its own message stands above")


def clean_environment() -> dict[str, str]:
    """Our variables without what would let our packages into the peer's environment."""
    own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP"}
    return {**{k: v for k, v in os.environ.items() if k not in own}, "PYTHONNOUSERSITE": "1"}


def installed(peer: Peer) -> dict[str, str]:
    """Versions of the peer's packages in its environment; empty without one, or where it is broken."""
    python = interpreter(peer)
    if not python.is_file():
        return {}
    names = [p.split("[")[0].split(">")[0].split("=")[0] for p in (*peer.packages, *peer.converter)]
    code = (
        "import sys, importlib.metadata as m\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    try:
        done = subprocess.run(
            [str(python), "-c", code, *dict.fromkeys(names)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=clean_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
