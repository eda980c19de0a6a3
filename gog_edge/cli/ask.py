"""`gog-edge ask IMAGE ["QUESTION"]`: run the loop, show it live, print the answer with its evidence."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gog_edge.cli.common import pictures
from gog_edge.cli.common.bundles import bundle_option, chosen, chosen_index, index_options
from gog_edge.cli.common.console import one_line, print_json, stderr, stdout, styled
from gog_edge.cli.common.live import LiveView
from gog_edge.cli.common.options import (
    SECONDS,
    image_options,
    results_options,
    sampling_options,
    take_image_limits,
    take_sampling,
    threads_option,
)
from gog_edge.cli.common.timelines import mcap_option, open_logs, rerun_option
from gog_edge.errors import UsageError
from gog_edge.types import AnswerEvent, TextEvent

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent
    from gog_edge.agent.options import RunOptions
    from gog_edge.agent.split import SplitAgent
    from gog_edge.types import Answer, Event

EXIT_NO_ANSWER = 1


@click.command("ask")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE [IMAGE…] [QUESTION]")
@bundle_option("The exported policy.")
@index_options
@click.option("--search", type=click.Path(path_type=Path), help="A TOML file of web search providers (docs/search.md).")
@click.option("--image-url", "urls", multiple=True, help="Public URL of the image, for web search.")
@click.option("--early-knowledge", is_flag=True, help="Search with the question first and start from the results.")
@results_options
@click.option("--expand", type=click.IntRange(0, 100), default=0, help="Append up to N related entries of the index.")
@click.option("--engine", help="cpu, cuda, tensorrt …, openai:URL; default: what the bundle was exported for.")
@click.option("--escalate", metavar="openai:URL", help="Ask the policy on a server where the one here is unsure.")
@click.option(
    "--unsure",
    type=click.FloatRange(max=0),
    help="With --escalate: log-probability that each token of the answer must reach here; default -0.7.",
)
@click.option("--dialect", help="Name or file that replaces the bundle's dialect.")
@click.option("--deadline", type=SECONDS, help="Time limit (2s, 500ms); then the best answer so far.")
@click.option("--max-turns", type=click.IntRange(min=1), help="Rounds before the policy is made to answer.")
@click.option("--grammar", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@sampling_options
@image_options
@threads_option
@click.option("--stream", is_flag=True, help="Show every token as it is written.")
@click.option("--quiet", is_flag=True, help="Only the answer: no steps, no evidence.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write the trace: .html, .json or .perfetto.json.")
@rerun_option
@mcap_option
@click.option("--json", "as_json", is_flag=True, help="Print the answer, its steps and evidence as JSON.")
def command(
    images: tuple[str, ...],
    bundle: Path | None,
    index: Path | None,
    no_index: bool,
    search: Path | None,
    urls: tuple[str, ...],
    engine: str | None,
    escalate: str | None,
    unsure: float | None,
    dialect: str | None,
    deadline: float | None,
    max_turns: int | None,
    stream: bool,
    quiet: bool,
    trace: Path | None,
    rerun: str | None,
    mcap: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask QUESTION about one or more images: files, http(s) addresses, or - for a picture on stdin.

    Without QUESTION you are asked for it; where there is no terminal, the dialect's usual one is taken. Steps are shown
    on stderr as they happen, the answer goes to stdout. Exit code 1: it ended without an answer.
    """
    named, question = pictures.split(images)
    from gog_edge.agent.loop import last_answer
    from gog_edge.agent.request import AskRequest
    from gog_edge.runtime.telemetry import Trace
    from gog_edge.runtime.trace.files import save_trace, writer_of

    if trace is not None:
        writer_of(trace)  # a name that can't be written is noticed before anything is loaded
    run = _options(options)
    if unsure is not None and escalate is None:
        raise UsageError("--unsure is for --escalate openai:URL")
    bundle = chosen(bundle, say=not quiet)
    index = chosen_index(bundle, index, no_index, say=not quiet)
    # a bad picture is found before the policy is loaded
    frames = [pictures.open_picture(name, run.pictures) for name in named]
    if question is None:
        question = _question(bundle, engine, dialect, quiet, asks=pictures.STDIN not in named)
    began = time.perf_counter()
    with (
        open_logs(rerun, mcap) as logs,
        _load(
            bundle, escalate, unsure, engine=engine, index=index, search=search, dialect=dialect, options=run
        ) as agent,
    ):
        view = None if quiet else LiveView(stderr(), tokens=stream)
        record = Trace(question)  # its time begins when the policy is loaded
        record.meta["load_seconds"] = round(time.perf_counter() - began, 3)
        request = AskRequest(frames, question, deadline=deadline, max_turns=max_turns, trace=record, urls=urls)
        logs.asked(frames, question)
        events = logs.shown(agent.events(request))
        live = not as_json and not stream and sys.stdout.isatty()
        answer = last_answer(_shown(events, view, live))
    if as_json:
        print_json({"question": question, **answer.to_dict()})
    else:
        _print(answer, evidence=not quiet, text=not live)
    if trace is not None:
        save_trace(record, trace)
    if trace is not None and not quiet:
        stderr().print(styled("[dim]trace: {}[/]", trace), soft_wrap=True)
    if not answer.text:
        if view is None:
            stderr().print(f"gog-edge: no answer ({answer.stop.value})")
        click.get_current_context().exit(EXIT_NO_ANSWER)


def _load(bundle: Path, escalate: str | None, unsure: float | None, **how: Any) -> Agent | SplitAgent:
    import gog_edge

    if escalate is None:
        return gog_edge.load(bundle, **how)
    from gog_edge.agent.split import SplitRule, load_split

    return load_split(bundle, escalate=escalate, rule=SplitRule() if unsure is None else SplitRule(unsure), **how)


def _question(bundle: Path, engine: str | None, dialect: str | None, quiet: bool, *, asks: bool) -> str:
    """The question that was not given: from the user, if there is one at a terminal (`asks`: and stdin is free), else
    the dialect's usual one."""
    from gog_edge.agent.loader import bundle_dialect, open_bundle

    usual = bundle_dialect(open_bundle(bundle, engine), dialect).usual_question
    if asks and sys.stdin is not None and sys.stdin.isatty():
        return _typed(usual)
    if not usual:
        raise UsageError('a question is needed, this dialect has no usual one: gog-edge ask photo.jpg "What is this?"')
    if not quiet:
        stderr().print(styled("[dim]question: {}[/]", usual), soft_wrap=True)
    return usual


def _typed(usual: str) -> str:
    """What the user types; nothing is the usual question. Not by `click.prompt`: before click 8.5 it puts a space into
    standard output, where the answer goes.

    Raises:
        click.Abort: the input ended.
    """
    while True:
        click.echo(f"question [{usual}]: " if usual else "question: ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            raise click.Abort
        if text := line.strip() or usual:
            return text


def _options(given: dict[str, Any]) -> RunOptions:
    from gog_edge.agent.options import RunOptions

    return RunOptions(sampling=take_sampling(given), pictures=take_image_limits(given), **given)


def _shown(events: Iterator[Event], view: LiveView | None, live: bool) -> Iterator[Event]:
    """The events, shown as they pass. `live`: the answer's text goes to stdout while it is written."""
    out, begun = stdout(), False
    for event in events:
        if live and isinstance(event, TextEvent):
            out.print(styled("[bold]{}[/]", event.text), end="", soft_wrap=True)
            sys.stdout.flush()
            begun = True
        elif begun and isinstance(event, AnswerEvent):
            out.print()
        if view is not None:
            view.show(event)
        yield event


def _print(answer: Answer, *, evidence: bool, text: bool) -> None:
    out = stdout()
    if answer.text and text:
        out.print(styled("[bold]{}[/]", answer.text))
    for hit in answer.evidence if evidence else ():
        source = f" ({hit.source})" if hit.source else ""
        out.print(f"  evidence: {one_line(hit.title)}: {one_line(hit.text)}{source}")
