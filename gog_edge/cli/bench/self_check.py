"""`gog-edge bench self-check`: does this machine's GPU compute what its CPU computes?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from gog_edge.cli.common.bundles import bundle_option
from gog_edge.cli.common.console import progress_bar, stdout
from gog_edge.cli.common.options import threads_option
from gog_edge.disk.files import write_text


@click.command("self-check")
@bundle_option("The bundle whose engine is checked.", asks=False)
@click.option("--engine", help="cuda, tensorrt …; default: what the bundle was exported for.")
@click.option("--reference", type=click.Path(path_type=Path), help="The CPU's results: read, or written if missing.")
@click.option("--tokens", type=click.IntRange(min=2), default=12, show_default=True, help="Tokens written per turn.")
@threads_option
@click.option("--out", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    bundle: Path | None, engine: str | None, reference: Path | None, tokens: int, out: Path | None, as_json: bool
) -> None:
    """Compare this machine's GPU with its CPU: crops, engine, CUDA graphs, timing; exit code 1 when they differ.

    Also spelt gog-edge bench --self-check. What can't run here says why, and what was checked instead.
    """
    from gog_edge.bench.self_check import run as checks
    from gog_edge.cli.common.console import print_json
    from gog_edge.serde import encode

    with progress_bar() as bar:
        task = bar.add_task("self-check", total=None)
        report = checks.self_check(
            bundle, engine, reference=reference, tokens=tokens, progress=lambda text: bar.update(task, description=text)
        )
    document = encode(report) | {"failed": report.failed}
    if out is not None:
        write_text(out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        print_json(document)
    else:
        for line in checks.lines(report):
            stdout().print(line)
    if report.failed:
        raise click.exceptions.Exit(1)
