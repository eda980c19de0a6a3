"""`gog-edge dora`: a node of a dora-rs dataflow."""

from __future__ import annotations

from pathlib import Path

import click

from gog_edge.cli.common.bundles import bundle_option, chosen, chosen_index, index_options
from gog_edge.cli.common.options import SECONDS, threads_option
from gog_edge.errors import UsageError


@click.command("dora")
@bundle_option("The exported policy.")
@index_options
@click.option("--search", type=click.Path(path_type=Path), help="A TOML file of web search providers (docs/search.md).")
@click.option("--engine", help="cpu, cuda, tensorrt …, openai:URL; default: what the bundle was exported for.")
@click.option("--question", default="", help="Asked until the input question brings another. Default: wait for that.")
@click.option("--deadline", type=SECONDS, help="From a picture's arrival to its answer: 2s, 500ms.")
@threads_option
def command(
    bundle: Path | None,
    index: Path | None,
    no_index: bool,
    search: Path | None,
    engine: str | None,
    question: str,
    deadline: float | None,
) -> None:
    """Be a node of a dora-rs dataflow: inputs image and question, outputs answer and boxes.

    Dataflows name this command as a node's path and its options as args. The newest picture is asked about, those that
    come while a question runs are dropped.
    """
    try:
        from gog_edge.integrations.dora.node import run_node
    except ImportError as e:
        raise UsageError(f"dora needs {e.name} (Python 3.11 or later): pip install 'gog-edge[dora]'") from e
    import gog_edge

    bundle = chosen(bundle, say=False)
    index = chosen_index(bundle, index, no_index, say=False)
    with gog_edge.load(bundle, engine=engine, index=index, search=search) as agent:
        agent.warm_up()
        run_node(agent, question.strip(), deadline)
