"""How long it takes to turn a page into passages: reading the HTML, and cutting the text to a query.

    python -m studies.page_reading page1.html page2.html --query "capital of Chad"

Prints a line a page and, last, one JSON line with medians. Nothing is fetched.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click

from gog_edge.search.passages import best_passages
from gog_edge.search.text_encoder import OnnxTextEncoder
from gog_edge.search.web.extract import extract

REPEATS = 5


@click.command()
@click.argument("pages", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--query", default="", help="What the passages should serve; the page's own title by default.")
@click.option("--chars", default=1200, show_default=True, help="Of passages.")
@click.option("--embedder", type=click.Path(path_type=Path), help="A sentence encoder that joins the choice.")
def command(pages: tuple[Path, ...], query: str, chars: int, embedder: Path | None) -> None:
    """Measure extraction and passage cutting on saved HTML pages."""
    encoder = OnnxTextEncoder(embedder) if embedder is not None else None
    medians: list[dict[str, float]] = []
    for page in pages:
        source = page.read_text(encoding="utf-8", errors="replace")
        times: list[dict[str, float]] = []
        for _ in range(REPEATS):
            began = _clocks()
            found = extract(source)
            between = _clocks()
            passages = best_passages(found.text, query or found.title, chars=chars, embedder=encoder)
            ended = _clocks()
            times.append({**_passed("reading", began, between), **_passed("cutting", between, ended)})
        medians.append(_medians(times))
        sizes = f"{len(source)} characters of HTML, {len(found.text)} of text, {len(passages)} of passages"
        spent = "  ".join(f"{value:8.1f} {name}" for name, value in medians[-1].items())
        click.echo(f"{spent}  {sizes}  {page.name}")
    click.echo(json.dumps({"pages": len(pages), **_medians(medians)}))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _passed(name: str, began: tuple[float, float], ended: tuple[float, float]) -> dict[str, float]:
    """Wall and processor time; on a busy machine only the second says what the work costs."""
    wall, processor = ((e - b) * 1e3 for b, e in zip(began, ended))
    return {f"{name}_ms": wall, f"{name}_processor_ms": processor}


def _medians(times: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(t[name] for t in times), 2) for name in times[0]}


if __name__ == "__main__":
    command()
