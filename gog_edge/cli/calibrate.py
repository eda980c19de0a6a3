"""`gog-edge calibrate CHECKPOINT -o DIR`: what export needs to quantise with error compensation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from gog_edge.cli.common.console import stderr
from gog_edge.cli.common.options import threads_option
from gog_edge.errors import UsageError


@click.command("calibrate")
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the statistics.")
@click.option("--questions", type=click.Path(path_type=Path), help="JSON lines with image and question.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images; default: beside the questions.")
@click.option("--index", type=click.Path(path_type=Path), help="Local index that is searched for the questions.")
@click.option("--count", default=32, show_default=True, type=click.IntRange(min=1), help="Conversations at most.")
@threads_option
@click.option("--dialect", help="A shipped dialect's name or a TOML file; default: the checkpoint's own, else gog.")
@click.option("--lora", metavar="ADAPTER", help="A PEFT adapter to merge: a folder, or a hub id like owner/name.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
def command(
    checkpoint: str,
    output: Path,
    questions: Path | None,
    images: Path | None,
    index: Path | None,
    count: int,
    dialect: str | None,
    lora: str | None,
    revision: str | None,
) -> None:
    """Let the policy of CHECKPOINT answer questions and note what its layers see.

    `gog-edge export --calibration DIR` then compensates the errors of quantisation (GPTQ). The questions should be
    like those it will be asked; without them it talks about generated pictures.
    """
    try:
        import gog_edge.export.parity.reference  # noqa: F401 - torch and transformers, before a checkpoint is fetched
        from gog_edge.export.checkpoint.reader import Checkpoint
        from gog_edge.export.parity.calibrate import calibrate
        from gog_edge.export.parity.rollouts import Source, sample
    except ImportError as e:
        raise UsageError(f"calibration needs {e.name}: pip install 'gog-edge[export,parity]'") from e
    if images is not None and questions is None:
        raise UsageError("--images needs --questions")
    opened = Checkpoint.open(checkpoint, revision=revision)
    if lora is not None:
        opened = opened.with_lora(lora)
    console = stderr()
    with tempfile.TemporaryDirectory(prefix="gog-edge-calibrate-") as scratch:
        with console.status("the policy answers"):
            talks = sample(opened, Source(questions, images, index, dialect), count, Path(scratch))
        with console.status("the HF model reads"):
            done = calibrate(opened, talks, output)
    console.print(f"{output}: {done.meta['conversations']} conversations, {done.meta['tokens']} tokens")
