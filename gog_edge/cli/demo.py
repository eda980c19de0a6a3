"""`gog-edge demo`: export gog-nano, index its world, ask a question; each step is shown as the command that does it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import gog_edge
from gog_edge.cli import ask, export, index
from gog_edge.cli.common.console import stderr, styled
from gog_edge.errors import UsageError
from gog_edge.library import directory

QUESTION = "What is the capital of the country of the second flag from the left?"

KNOWS = (
    "gog-nano knows drawn scenes of flags, questions in a few wordings, and nothing else: about a photo of your own it "
    'says "unknown" or something wrong. For your own pictures export a trained policy: gog-edge export CHECKPOINT'
)


@click.command("demo")
def command() -> None:
    """Export gog-nano, the project's own small policy, index its world, and ask it a question about a picture.

    The policy knows drawn scenes of flags only: about a photo of your own it says "unknown" or something wrong.
    It and its world travel in the package. The bundle goes to the library, index and trace to .demo beside it.
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
    stderr().print(styled("[dim]{}[/]", KNOWS), soft_wrap=True)


def _nano() -> Path:
    """The checkpoint with its world: in the package, or in the checkout that an editable install runs from."""
    package = Path(gog_edge.__file__).resolve().parent
    for folder in (package / "nano", package.parent / "models" / "gog-nano"):
        if (folder / "config.json").is_file():
            return folder
    raise UsageError(
        "gog-nano is missing from this installation: install gog-edge again, from a wheel or from its repository"
    )


def _run(step: click.Command, name: str, args: list[str]) -> None:
    shown = shlex.join(["gog-edge", name, *args])
    stderr().print(styled("[bold]$ {}[/]", shown), soft_wrap=True)
    code = step.main(args, prog_name=f"gog-edge {name}", standalone_mode=False)
    if isinstance(code, int) and code:
        raise click.exceptions.Exit(code)
