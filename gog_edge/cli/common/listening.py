"""What the commands that listen on a port share: the address, the key, and how they end."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from gog_edge.cli.common.console import stderr
from gog_edge.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def access_options(command: _Command) -> _Command:
    """`--api-key-env`, `--allow-host`, `--allow-origin`: who may ask."""
    origins = "Origin of pages that may ask (https://name); '*': any."
    hosts = "A further host name under which this is reached; '*': any."
    key = "Environment variable with the key that clients must send."
    command = click.option("--allow-origin", "origins", multiple=True, help=origins)(command)
    command = click.option("--allow-host", "hosts", multiple=True, help=hosts)(command)
    command = click.option("--api-key-env", metavar="NAME", help=key)(command)
    return command


def read_key(variable: str | None) -> str | None:
    """The API key: never on the command line, where every process can read it."""
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "")).strip():
        raise UsageError(f"--api-key-env {variable}: this environment variable is not set, or empty")
    return key.strip()


def announce(what: str, host: str, listening: socket.socket, suffix: str, key: str | None) -> None:
    """One line on stderr that says where `what` is served, and another if it is open to a network."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    stderr().print(f"serving {what} at {address}{suffix}", markup=False)
    if key is None and not _is_loopback(listening):
        stderr().print("everybody on this network may ask: --api-key-env NAME asks for a key", markup=False)


@contextmanager
def ending_with_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, everything closed, with exit code 0."""

    def stop(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def check_host(host: str) -> None:
    """An empty name is every network to the system: nobody is to mean that by an unset variable."""
    if not host.strip():
        raise UsageError("--host is empty: name an address (127.0.0.1; 0.0.0.0 listens on every network)")


def listen(host: str, port: int) -> socket.socket:
    """Take the port before the policy is loaded: one that is taken is noticed at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise UsageError(f"can't listen on {host}:{port} ({e.strerror or e}); choose another --host or --port") from e
