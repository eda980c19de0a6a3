"""`gog-edge demo`: export gog-nano, index its world, ask a question; each step is shown as the command that does it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import gog_edge
from gog_edge.cli import ask, export, index
from gog_edge.cli.console import stderr, styled
from gog_edge.errors import UsageError
from gog_edge.library import directory

NANO = Path("models") / "gog-nano"
QUESTION = "What is the capital of the country of the second flag from the left?"


@click.command("demo")
def command() -> None:
    """Export gog-nano, the project's own small policy, index its world, and ask it a question about a picture.

    It needs a checkout of the repository: beside the package (an editable installation), or the working folder. The
    bundle goes to the library, index and trace to .demo beside it.
    """
    nano = _nano()
    out = directory() / ".demo"
    world, trace = out / "world.index", out / "trace.html"
    documents, picture = nano / "world" / "documents.jsonl", nano / "examples" / "scene.jpg"
    bundle = ["--bundle", "gog-nano"]
    out.mkdir(parents=True, exist_ok=True)
    _run(export.command, "export", [str(nano), "--precision", "int8", "--name", "gog-nano"])
    _run(index.command, "index", ["build", str(world), str(documents), *bundle, "--force"])
    _run(ask.command, "ask", [str(picture), QUESTION, *bundle, "--index", str(world), "--trace", str(trace)])


def _nano() -> Path:
    beside = Path(gog_edge.__file__).resolve().parents[1]
    for root in (beside, Path.cwd()):
        if (root / NANO / "config.json").is_file():
            return root / NANO
    raise UsageError(
        f"the demo needs {NANO}, which the installed package does not carry: clone the gog-edge repository and run "
        "gog-edge demo in it"
    )


def _run(step: click.Command, name: str, args: list[str]) -> None:
    shown = shlex.join(["gog-edge", name, *args])
    stderr().print(styled("[bold]$ {}[/]", shown), soft_wrap=True)
    code = step.main(args, prog_name=f"gog-edge {name}", standalone_mode=False)
    if isinstance(code, int) and code:
        raise click.exceptions.Exit(code)
