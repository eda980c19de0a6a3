"""`gog-edge mcp`: the policy and its index as tools for agents that speak the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gog_edge.cli.common.bundles import bundle_option, chosen, chosen_index, index_options
from gog_edge.cli.common.listening import access_options, announce, check_host, ending_with_sigterm, listen, read_key
from gog_edge.cli.common.options import image_options, take_image_limits, threads_option
from gog_edge.errors import UsageError


@click.command("mcp")
@bundle_option("The exported policy.")
@index_options
@click.option("--search", type=click.Path(path_type=Path), help="A TOML file of web search providers (docs/search.md).")
@click.option("--engine", help="cpu, cuda, tensorrt …, openai:URL; default: what the bundle was exported for.")
@click.option(
    "--pictures",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder whose files may be named. Default: every file, and none with --http.",
)
@click.option(
    "--allow-address", "addresses", multiple=True, metavar="URL", help="Fetch from this host though it is not public."
)
@click.option("--http", is_flag=True, help="Serve streamable HTTP at /mcp instead of stdin and stdout.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --http.")
@click.option("--port", type=click.IntRange(0, 65535), default=8711, show_default=True, help="With --http; 0: any.")
@access_options
@image_options
@threads_option
def command(
    bundle: Path | None,
    index: Path | None,
    no_index: bool,
    search: Path | None,
    engine: str | None,
    folders: tuple[Path, ...],
    addresses: tuple[str, ...],
    http: bool,
    host: str,
    port: int,
    api_key_env: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    **images: Any,
) -> None:
    """Serve the tools ask, look, search_text and search_image over MCP, to one client on stdin and stdout.

    A client's configuration names this command with its options. With --http any number of clients connect to /mcp.
    """
    try:
        from gog_edge.integrations.mcp.server import http_app, make_server, run_stdio, stdout_kept_clean
        from gog_edge.serve.connection import make_server as make_http_server
    except ImportError as e:
        raise UsageError(f"mcp needs {e.name}: pip install 'gog-edge[mcp]'") from e
    import gog_edge
    from gog_edge.agent.options import RunOptions
    from gog_edge.integrations.mcp.pictures import PictureRules
    from gog_edge.integrations.mcp.tools import Toolbox
    from gog_edge.serve.limits import ServeLimits

    check_host(host)
    key = read_key(api_key_env)
    limits = take_image_limits(images)
    rules = PictureRules(folders if folders or http else None, addresses, limits)
    rules.policy()  # a wrong address is noticed now
    bundle = chosen(bundle, say=False)
    index = chosen_index(bundle, index, no_index, say=False)
    run, name = RunOptions(pictures=limits), bundle.name or bundle.resolve().name
    if not http:
        with stdout_kept_clean():
            agent = gog_edge.load(bundle, engine=engine, index=index, search=search, options=run)
        with agent:
            run_stdio(make_server(Toolbox(agent, rules), name))
        return
    with (
        ending_with_sigterm(),
        listen(host, port) as listening,
        gog_edge.load(bundle, engine=engine, index=index, search=search, options=run) as agent,
    ):
        serve = ServeLimits()
        app = http_app(make_server(Toolbox(agent, rules), name), serve, hosts=(host, *hosts), origins=origins, key=key)
        announce(str(bundle), host, listening, "/mcp", key)
        make_http_server(app, serve).run(sockets=[listening])
