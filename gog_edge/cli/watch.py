"""`gog-edge watch SOURCE ["QUESTION"]`: a question about a camera's newest frame, again and again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gog_edge.cli.common.bundles import bundle_option, chosen, chosen_index, index_options
from gog_edge.cli.common.console import one_line, stdout, styled
from gog_edge.cli.common.options import SECONDS, image_options, take_image_limits, threads_option
from gog_edge.cli.common.timelines import foxglove_option, mcap_option, open_logs, rerun_option
from gog_edge.sanitize import printable_json

if TYPE_CHECKING:
    from gog_edge.agent.camera.watch import Sighting


@click.command("watch")
@click.argument("source")
@click.argument("question", required=False)
@bundle_option("The exported policy.")
@index_options
@click.option("--search", type=click.Path(path_type=Path), help="A TOML file of web search providers (docs/search.md).")
@click.option("--engine", help="cpu, cuda, tensorrt …, openai:URL; default: what the bundle was exported for.")
@click.option("--deadline", type=SECONDS, help="From taking a frame to its answer: 2s, 500ms.")
@click.option("--every", is_flag=True, help="Ask about every frame of a file; default: the newest.")
@click.option("--count", type=click.IntRange(min=1), help="End after N answers.")
@click.option("--patience", type=SECONDS, help="End if no frame comes for so long; default: wait.")
@image_options
@threads_option
@rerun_option
@mcap_option
@foxglove_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    source: str,
    question: str | None,
    bundle: Path | None,
    index: Path | None,
    no_index: bool,
    search: Path | None,
    engine: str | None,
    deadline: float | None,
    every: bool,
    count: int | None,
    patience: float | None,
    rerun: str | None,
    mcap: Path | None,
    foxglove: str | None,
    as_json: bool,
    **images: Any,
) -> None:
    """Ask QUESTION about the newest frame of SOURCE until it ends or Ctrl-C.

    SOURCE is a camera's number (0), a V4L2 device (/dev/video0), an address (rtsp://…, http://…), a GStreamer pipeline
    or a video file. Without QUESTION the dialect's usual one is taken.
    """
    import gog_edge
    from gog_edge.agent.options import RunOptions

    run = RunOptions(pictures=take_image_limits(images))
    bundle = chosen(bundle)
    index = chosen_index(bundle, index, no_index)
    with (
        open_logs(rerun, mcap, foxglove) as logs,
        gog_edge.load(bundle, engine=engine, index=index, search=search, options=run) as agent,
    ):
        agent.warm_up()
        asked = question or agent.dialect.usual_question
        with closing(agent.watch(source, question, deadline=deadline, every=every, patience=patience)) as seen:
            _show(logs.seen(islice(seen, count), asked), as_json)


def _show(seen: Iterator[Sighting], as_json: bool) -> None:
    out = stdout()
    for one in seen:
        if as_json:
            line = {
                "frame": one.number,
                "taken_at": round(one.taken_at, 3),
                "age": round(one.age, 3),
                "dropped": one.dropped,
                "answer": one.answer.text,
                "stop": one.answer.stop.value,
            }
            click.echo(printable_json(json.dumps(line, ensure_ascii=True)))
            continue
        said = one_line(one.answer.text) or f"no answer ({one.answer.stop.value})"
        facts = one.number, f"{one.age:.2f}", one.dropped
        out.print(styled("[dim]frame {}, {} s old, {} dropped[/] [bold]{}[/]", *facts, said))
