"""`gog-edge serve`: the HTTP service around one bundle."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gog_edge.cli.bundles import bundle_option, chosen, chosen_index, index_options
from gog_edge.cli.console import stderr
from gog_edge.cli.options import SECONDS, image_options, take_image_limits, threads_option
from gog_edge.errors import UsageError


@click.command("serve")
@bundle_option("The exported policy.")
@index_options
@click.option("--search", type=click.Path(path_type=Path), help="A TOML file of web search providers (docs/search.md).")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8710, show_default=True, help="0: any free port.")
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Questions that may wait; further ones get status 429.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Conversations whose keys and values stay in memory for their next turn.",
)
@click.option(
    "--connections", type=click.IntRange(min=1), default=256, show_default=True, help="Open connections, at most."
)
@click.option(
    "--shutdown",
    type=SECONDS,
    default="10s",
    show_default=True,
    help="Time for running questions after SIGTERM or Ctrl-C.",
)
@image_options
@threads_option
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send.")
@click.option("--allow-host", "hosts", multiple=True, help="A further host name under which this is reached; '*': any.")
@click.option("--allow-origin", "origins", multiple=True, help="Origin of pages that may ask (https://name); '*': any.")
@click.option("--access-log", is_flag=True, help="A line of JSON on stderr for every request.")
def command(
    bundle: Path | None,
    index: Path | None,
    no_index: bool,
    search: Path | None,
    host: str,
    port: int,
    queue: int,
    sessions: int,
    connections: int,
    shutdown: float,
    api_key_env: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    access_log: bool,
    **images: Any,
) -> None:
    """Answer questions over HTTP: POST /v1/ask, POST /v1/chat/completions, GET /v1/models, GET /healthz.

    Without --api-key-env everybody who reaches the address may ask: keep it on the loopback address then.
    """
    try:
        from gog_edge.serve.app import create_app
        from gog_edge.serve.connection import make_server
        from gog_edge.serve.limits import ServeLimits
    except ImportError as e:
        raise UsageError(f"serve needs {e.name}: pip install 'gog-edge[serve]'") from e
    import gog_edge
    from gog_edge.agent.options import RunOptions

    _check_host(host)
    key = _key(api_key_env)
    if access_log:
        _log_accesses()
    bundle = chosen(bundle, say=False)
    index = chosen_index(bundle, index, no_index)
    run = RunOptions(pictures=take_image_limits(images), keep_sessions=sessions)
    limits = ServeLimits(connections=connections, shutdown_seconds=math.ceil(shutdown))
    with (
        _ending_with_sigterm(),
        _listen(host, port) as listening,
        gog_edge.load(bundle, index=index, search=search, options=run) as agent,
    ):
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        name = bundle.name or bundle.resolve().name
        app = create_app(agent, name=name, queue=queue, limits=limits, hosts=(host, *hosts), origins=origins, key=key)
        stderr().print(f"serving {bundle} at {address}  (POST /v1/ask, /v1/chat/completions)", markup=False)
        if key is None and not _is_loopback(listening):
            stderr().print("everybody on this network may ask: --api-key-env NAME asks for a key", markup=False)
        make_server(app, limits).run(sockets=[listening])


def _log_accesses() -> None:
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("gog_edge.access")
    logger.handlers, logger.propagate = [lines], False
    logger.setLevel(logging.INFO)


def _key(variable: str | None) -> str | None:
    """The API key: never on the command line, where every process can read it."""
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "")).strip():
        raise UsageError(f"--api-key-env {variable}: this environment variable is not set, or empty")
    return key.strip()


@contextmanager
def _ending_with_sigterm() -> Iterator[None]:
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


def _check_host(host: str) -> None:
    """An empty name is every network to the system: nobody is to mean that by an unset variable."""
    if not host.strip():
        raise UsageError("--host is empty: name an address (127.0.0.1; 0.0.0.0 listens on every network)")


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the policy is loaded: one that is taken is noticed at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise UsageError(f"can't listen on {host}:{port} ({e.strerror or e}); choose another --host or --port") from e
