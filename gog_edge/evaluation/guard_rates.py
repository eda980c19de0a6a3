"""How often the guard withholds something: of texts that try to take over, and of texts that do not.

    python -m gog_edge.evaluation.guard_rates attacks.jsonl more.txt --benign pages.jsonl --benign manual.txt

A file is `.jsonl` (one object with a `text`, or one string, a line) or plain text with one text a line. Prints a line
a file and, last, one JSON line. `--show` lists what got through (attacks) and what was withheld (benign).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from gog_edge.evaluation.texts import read_texts
from gog_edge.search.guard import inspect, sentences

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True)
class Rates:
    """Of one file. `whole`: texts of which at least nine tenths of the characters were withheld."""

    file: str
    kind: str
    texts: int
    touched: int
    whole: int
    sentences: int
    withheld: int
    characters: int
    withheld_characters: int
    ms_a_text: float


@click.command()
@click.argument("attacks", nargs=-1, type=_FILE)
@click.option("--benign", multiple=True, type=_FILE, help="A file of texts that nothing should be withheld from.")
@click.option("--show", is_flag=True, help="List attacks that got through, and what benign texts lost.")
def command(attacks: tuple[Path, ...], benign: tuple[Path, ...], show: bool) -> None:
    """Measure the guard's recall on attacks and its false positives on benign texts."""
    if not attacks and not benign:
        raise click.UsageError("name at least one file of attacks, or one with --benign")
    found = [measure(path, kind, show) for kind, paths in (("attacks", attacks), ("benign", benign)) for path in paths]
    click.echo(f"{'':7} {'texts':>6} {'touched':>14} {'whole':>6} {'sentences':>16} {'ms/text':>8}")
    for r in found:
        share = f"{r.touched} ({r.touched / max(r.texts, 1):.1%})"
        lost = f"{r.withheld} of {r.sentences}"
        click.echo(f"{r.kind:7} {r.texts:6} {share:>14} {r.whole:6} {lost:>16} {r.ms_a_text:8.3f}  {r.file}")
    click.echo(json.dumps({"files": [asdict(r) for r in found]}))


def measure(path: Path, kind: str, show: bool = False) -> Rates:
    """Run the guard over every text of a file.

    Raises:
        DatasetError: a line is no text.
    """
    texts = list(read_texts(path))
    touched = whole = lost = of = gone = 0
    spent = 0.0
    for text in texts:
        began = time.process_time()
        kept, withheld = inspect(text)
        spent += time.process_time() - began
        of += sum(1 for _ in sentences(text))
        touched += bool(withheld)
        lost += sum(1 for piece in withheld for _ in sentences(piece))
        left = len("".join(kept.split()))
        gone += sum(map(len, withheld))
        whole += left <= 0.1 * len("".join(text.split()))
        if show and (kind == "attacks") != bool(withheld):
            click.echo(f"{path.name}: {' / '.join(withheld) or text!r}")
    size = sum(map(len, texts))
    ms = round(spent * 1e3 / max(len(texts), 1), 4)
    return Rates(path.name, kind, len(texts), touched, whole, of, lost, size, gone, ms)


if __name__ == "__main__":
    command()
