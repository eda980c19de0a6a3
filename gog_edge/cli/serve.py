"""`gog-edge serve`: the HTTP service around one bundle."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import click

from gog_edge.cli.common.bundles import bundle_option, chosen, chosen_index, index_options
from gog_edge.cli.common.listening import access_options, announce, check_host, ending_with_sigterm, listen, read_key
from gog_edge.cli.common.options import SECONDS, image_options, take_image_limits, threads_option
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
    "--at-once",
    type=click.IntRange(1, 64),
    help="Questions that run side by side. Default: as many as share the policy's runs (8 with native operators, "
    "else 1).",
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
@access_options
@click.option("--access-log", is_flag=True, help="A line of JSON on stderr for every request.")
def command(
    bundle: Path | None,
    index: Path | None,
    no_index: bool,
    search: Path | None,
    host: str,
    port: int,
    queue: int,
    at_once: int | None,
    sessions: int,
    connections: int,
    shutdown: float,
    api_key_env: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    access_log: bool,
    **images: Any,
) -> None:
    """Answer questions over HTTP: POST /v1/ask, /v1/chat/completions and /v1/responses; GET / is a page.

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

    check_host(host)
    key = read_key(api_key_env)
    if access_log:
        _log_accesses()
    bundle = chosen(bundle, say=False)
    index = chosen_index(bundle, index, no_index)
    run = RunOptions(pictures=take_image_limits(images), keep_sessions=sessions)
    limits = ServeLimits(connections=connections, shutdown_seconds=math.ceil(shutdown))
    with (
        ending_with_sigterm(),
        listen(host, port) as listening,
        gog_edge.load(bundle, index=index, search=search, options=run) as agent,
    ):
        name = bundle.name or bundle.resolve().name
        app = create_app(
            agent,
            name=name,
            queue=queue,
            at_once=at_once or agent.most_together,
            limits=limits,
            hosts=(host, *hosts),
            origins=origins,
            key=key,
        )
        announce(str(bundle), host, listening, "  (POST /v1/ask, /v1/chat/completions, /v1/responses)", key)
        make_server(app, limits).run(sockets=[listening])


def _log_accesses() -> None:
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("gog_edge.access")
    logger.handlers, logger.propagate = [lines], False
    logger.setLevel(logging.INFO)
