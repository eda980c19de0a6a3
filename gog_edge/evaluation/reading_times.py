"""How long it takes to turn a page into passages: reading the HTML, and cutting the text to a query.

    python -m gog_edge.evaluation.reading_times page1.html page2.html --query "capital of Chad"

Prints a line a page and, last, one JSON line with medians. Nothing is fetched.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click

from gog_edge.runtime.search.passages import best_passages
from gog_edge.runtime.search.web.extract import extract

REPEATS = 5


@click.command()
@click.argument("pages", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--query", default="", help="What the passages should serve; the page's own title by default.")
@click.option("--chars", default=1200, show_default=True, help="Of passages.")
def command(pages: tuple[Path, ...], query: str, chars: int) -> None:
    """Measure extraction and passage cutting on saved HTML pages."""
    reading: list[float] = []
    cutting: list[float] = []
    for page in pages:
        source = page.read_text(encoding="utf-8", errors="replace")
        read_ms: list[float] = []
        cut_ms: list[float] = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            found = extract(source)
            between = time.perf_counter()
            passages = best_passages(found.text, query or found.title, chars=chars)
            ended = time.perf_counter()
            read_ms.append((between - began) * 1e3)
            cut_ms.append((ended - between) * 1e3)
        reading.append(statistics.median(read_ms))
        cutting.append(statistics.median(cut_ms))
        sizes = f"{len(source)} characters of HTML, {len(found.text)} of text, {len(passages)} of passages"
        click.echo(f"{reading[-1]:8.1f} ms reading  {cutting[-1]:8.1f} ms cutting  {sizes}  {page.name}")
    medians = {"reading_ms": round(statistics.median(reading), 2), "cutting_ms": round(statistics.median(cutting), 2)}
    click.echo(json.dumps({"pages": len(pages), **medians}))


if __name__ == "__main__":
    command()
