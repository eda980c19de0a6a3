"""`gog-edge serve`: the HTTP service around one bundle."""

from __future__ import annotations

from pathlib import Path

import click

from gog_edge.cli.console import stderr
from gog_edge.errors import UsageError


@click.command("serve")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The exported policy.")
@click.option("--index", type=click.Path(path_type=Path), help="A local index to search.")
@click.option("--search", type=click.Path(path_type=Path), help="A TOML file of web search providers (docs/search.md).")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8710, show_default=True)
@click.option("--queue", default=8, show_default=True, help="Questions that may wait; further ones get status 429.")
def command(bundle: Path, index: Path | None, search: Path | None, host: str, port: int, queue: int) -> None:
    """Answer questions over HTTP: POST /v1/ask, POST /v1/chat/completions, GET /healthz.

    There is no authentication: keep it on the loopback address, or behind a proxy that checks who asks.
    """
    try:
        import uvicorn

        from gog_edge.serve.app import create_app
    except ImportError as e:
        raise UsageError(f"serve needs {e.name}: pip install 'gog-edge[serve]'") from e
    import gog_edge

    with gog_edge.load(bundle, index=index, search=search) as agent:
        stderr().print(f"serving {bundle} at http://{host}:{port}  (POST /v1/ask, /v1/chat/completions)")
        uvicorn.run(create_app(agent, name=bundle.name, queue=queue), host=host, port=port, log_level="warning")
