"""`gog-edge serve`: the HTTP service around one bundle."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from gog_edge.cli.bundles import bundle_option, chosen
from gog_edge.cli.console import stderr
from gog_edge.errors import UsageError


@click.command("serve")
@bundle_option("The exported policy.")
@click.option("--index", envvar="GOG_EDGE_INDEX", type=click.Path(path_type=Path), help="A local index to search.")
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
def command(bundle: Path | None, index: Path | None, search: Path | None, host: str, port: int, queue: int) -> None:
    """Answer questions over HTTP: POST /v1/ask, POST /v1/chat/completions, GET /healthz.

    There is no authentication: keep it on the loopback address, or behind a proxy that checks who asks.
    """
    try:
        import uvicorn

        from gog_edge.serve.app import create_app
    except ImportError as e:
        raise UsageError(f"serve needs {e.name}: pip install 'gog-edge[serve]'") from e
    import gog_edge

    bundle = chosen(bundle, say=False)
    with _listen(host, port) as listening, gog_edge.load(bundle, index=index, search=search) as agent:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        stderr().print(f"serving {bundle} at {address}  (POST /v1/ask, /v1/chat/completions)", markup=False)
        config = uvicorn.Config(create_app(agent, name=bundle.name, queue=queue), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the policy is loaded: one that is taken is noticed at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise UsageError(f"can't listen on {host}:{port} ({e.strerror or e}); choose another --host or --port") from e
