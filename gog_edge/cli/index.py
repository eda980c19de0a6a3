"""`gog-edge index build|add|search|info|remove`: the local index."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gog_edge.cli.common.bundles import bundle_option
from gog_edge.cli.common.console import human_bytes, one_line, print_json, progress_bar, stderr, stdout, styled
from gog_edge.cli.common.options import cut_option, image_options, take_image_limits, threads_option
from gog_edge.disk import leftovers
from gog_edge.errors import UsageError
from gog_edge.runtime.telemetry import counted

if TYPE_CHECKING:
    from gog_edge.image.frame import ImageLimits
    from gog_edge.search.base import Cut, Embedder
    from gog_edge.search.local.index import LocalIndex
    from gog_edge.search.local.record import IngestReport

FOLDER = click.argument("index", type=click.Path(path_type=Path))
SOURCES = click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
BUNDLE = bundle_option("Policy whose tower makes image vectors.", asks=False)
ENCODER = click.option("--encoder", type=click.Path(path_type=Path), help="ONNX encoder that makes image vectors.")
PIXELS = click.option("--max-pixels", type=click.IntRange(min=0), default=0, help="Resize pictures to this area first.")
KIND = click.option(
    "--kind", type=click.Choice(["entity", "page"]), default="entity", help="Kind of records that do not state it."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


@click.group("index")
def command() -> None:
    """Build, extend and search a local index of pictures and text."""


@command.command("build")
@FOLDER
@SOURCES
@BUNDLE
@ENCODER
@threads_option
@PIXELS
@image_options
@KIND
@click.option("--force", is_flag=True, help="Replace an existing index, once the new one is complete.")
@JSON
def build(
    index: Path,
    sources: tuple[Path, ...],
    bundle: Path | None,
    encoder: Path | None,
    max_pixels: int,
    kind: str,
    force: bool,
    as_json: bool,
    **images: Any,
) -> None:
    """Make the folder INDEX from SOURCES: folders of pictures, JSONL or CSV files.

    A build that was stopped continues with `gog-edge index add` and the same arguments.
    """
    from gog_edge.search.local.database import DATABASE

    embedder = _embedder(bundle, encoder, max_pixels, "")
    limits = take_image_limits(images)
    leftovers.sweep(index.absolute().parent)
    if force and (index / DATABASE).exists():
        target = leftovers.followed(index.absolute())
        with leftovers.scratch_folder(target) as folder:
            report = _fill(folder, sources, embedder, kind, limits, create=True)
            leftovers.swap_in(folder, target)
    else:
        report = _fill(index, sources, embedder, kind, limits, create=True)
    _print_report(index, report, as_json)


@command.command("add")
@FOLDER
@SOURCES
@BUNDLE
@ENCODER
@threads_option
@PIXELS
@image_options
@KIND
@JSON
def add(
    index: Path,
    sources: tuple[Path, ...],
    bundle: Path | None,
    encoder: Path | None,
    max_pixels: int,
    kind: str,
    as_json: bool,
    **images: Any,
) -> None:
    """Add SOURCES to INDEX. What is in it already is skipped; changed entries (same id) are replaced."""
    with _open(index) as opened:
        known = opened.encoder
    if known and not (bundle or encoder):
        raise UsageError(f"{index} holds image vectors: give the --bundle or --encoder that it was built with")
    report = _fill(
        index, sources, _embedder(bundle, encoder, max_pixels, known), kind, take_image_limits(images), create=False
    )
    _print_report(index, report, as_json)


@command.command("search")
@FOLDER
@click.argument("query", default="")
@click.option("--image", type=click.Path(path_type=Path), help="Search with this picture.")
@image_options
@click.option("--box", help="Only this part of the picture: x0,y0,x1,y1 in pixels.")
@BUNDLE
@ENCODER
@threads_option
@click.option("-k", "--results", type=click.IntRange(1, 100), default=5, show_default=True, help="Maximum results.")
@click.option("--all", "everything", is_flag=True, help="Always K results, however low they score: --cut none.")
@cut_option
@click.option("--expand", type=click.IntRange(0, 100), default=0, help="Append up to N related entries.")
@JSON
def search(
    index: Path,
    query: str,
    image: Path | None,
    box: str | None,
    bundle: Path | None,
    encoder: Path | None,
    results: int,
    everything: bool,
    cut: Cut,
    expand: int,
    as_json: bool,
    **images: Any,
) -> None:
    """Search INDEX with QUERY, with a picture, or with both."""
    if not (query.strip() or image):
        raise UsageError("nothing to search for: give a QUERY, --image, or both")
    if box and not image:
        raise UsageError("--box cuts a picture: give --image, too")
    with _open(index) as opened:
        vector = None
        if image is not None:
            from gog_edge.image.frame import Frame
            from gog_edge.search.embedders import embedder_of
            from gog_edge.search.local.ingest import ensure_same_encoder

            embedder = _embedder(bundle, encoder, 0, opened.encoder) or embedder_of(opened)
            if embedder is None:
                raise UsageError(f"{index} holds no image vectors; rebuild it with --bundle or --encoder")
            ensure_same_encoder(opened, embedder)
            vector = embedder.embed(Frame.open(image, limits=take_image_limits(images)), _region(box))
        hits = opened.search(query, vector, k=results, cut="none" if everything else cut, expand=expand)
    if as_json:
        print_json([{f: getattr(hit, f) for f in hit.__dataclass_fields__} for hit in hits])
        return
    table = Table(box=None)
    for name in ("score", "id", "title", "text", "source"):
        table.add_column(name, justify="right" if name == "score" else "left", max_width=60, overflow="ellipsis")
    for hit in hits:
        score = "related" if hit.score is None else f"{hit.score:.3f}"
        table.add_row(*(one_line(v) for v in (score, hit.entity, hit.title, hit.text[:200], hit.source)))
    stdout().print(table if hits else "nothing found")


@command.command("info")
@FOLDER
@JSON
def info(index: Path, as_json: bool) -> None:
    """Say what INDEX holds and which encoder made its vectors."""
    with _open(index) as opened:
        facts = opened.info()
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        shown = human_bytes(value) if name == "bytes" and isinstance(value, int) else value
        table.add_row(name.replace("_", " "), f"{shown:,}" if isinstance(shown, int) else str(shown))
    stdout().print(table)


@command.command("push")
@FOLDER
@click.argument("address", metavar="qdrant:URL#COLLECTION")
def push(index: Path, address: str) -> None:
    """Copy INDEX into a new collection of Qdrant, which --index then takes in its place.

    The key is read from QDRANT_API_KEY. qdrant:FOLDER#COLLECTION keeps it in a folder, without a server.
    """
    from gog_edge.search.qdrant.collection import push as copy

    with _open(index) as opened, progress_bar() as bar:
        task = bar.add_task("pushing", total=opened.store.counts()["entries"])
        count = copy(opened, address, lambda done: bar.update(task, completed=done))
    stdout().print(f"{address}: {count} entries", soft_wrap=True, markup=False)


@command.command("remove")
@FOLDER
@click.argument("ids", nargs=-1, required=True)
def remove(index: Path, ids: tuple[str, ...]) -> None:
    """Delete entries of INDEX by id."""
    with _open(index, writable=True) as opened:
        gone = opened.remove(ids)
    stdout().print(f"{gone} of {len(ids)} removed")


@command.command("recall")
@FOLDER
@BUNDLE
@ENCODER
@threads_option
@click.option("--distortion", "names", multiple=True, help="Only these; see docs/search.md.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Only this many entries, evenly spread.")
@click.option("--labels", is_flag=True, help="Also search with words next to the image: right and wrong ones.")
@click.option("--related", is_flag=True, help="Also search for neighbours of entries, with and without --expand.")
@JSON
def recall(
    index: Path,
    bundle: Path | None,
    encoder: Path | None,
    names: tuple[str, ...],
    limit: int,
    labels: bool,
    related: bool,
    as_json: bool,
) -> None:
    """Measure how well INDEX finds its own entries when pictures and titles are distorted."""
    from gog_edge.evaluation.recall import DISTORTIONS, LABELS, measure_expansion, measure_pictures, measure_titles
    from gog_edge.search.embedders import embedder_of
    from gog_edge.search.local.ingest import ensure_same_encoder

    unknown = sorted(set(names) - set(DISTORTIONS))
    if unknown:
        raise UsageError(f"--distortion {unknown[0]!r}: one of {', '.join(DISTORTIONS)}")
    found: dict[str, dict[str, Any]] = {}
    with _open(index) as opened:
        if opened.encoder:
            embedder = _embedder(bundle, encoder, 0, opened.encoder) or embedder_of(opened)
            assert embedder is not None, "an index with vectors has an encoder"
            ensure_same_encoder(opened, embedder)
            with progress_bar() as bar:
                task = bar.add_task("pictures", total=None)
                pictures = measure_pictures(
                    opened,
                    embedder,
                    names=names,
                    limit=limit,
                    labels=labels,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
            for name, row in pictures.items():
                kind = "words alone" if name in LABELS else "picture"
                found[f"{kind}, {name}"] = row.as_json()
            if related:
                found.update({k: r.as_json() for k, r in measure_expansion(opened, embedder, limit=limit).items()})
        found.update({f"title, {name}": r.as_json() for name, r in measure_titles(opened, limit=limit).items()})
    if as_json:
        print_json({"index": str(index), "recall": found})
        return
    table = Table(box=None)
    for name in ("query", "n", "recall@1", "recall@5", "recall@shown", "results shown"):
        table.add_column(name, justify="left" if name == "query" else "right")
    for name, figures in found.items():
        shares = (f"{figures[at] * 100:.1f} %" for at in ("recall@1", "recall@5", "recall@shown"))
        table.add_row(name, str(figures["n"]), *shares, f"{figures['results shown']:.2f}")
    stdout().print(table)


def _open(folder: Path, writable: bool = False) -> LocalIndex:
    from gog_edge.search.local.index import LocalIndex

    return LocalIndex(folder, writable=writable)


def _embedder(bundle: Path | None, encoder: Path | None, max_pixels: int, fingerprint: str) -> Embedder | None:
    if bundle is None and encoder is None:
        if max_pixels:
            raise UsageError("--max-pixels is for image vectors: give --bundle, too")
        return None
    from gog_edge.agent.embedder import open_embedder

    return open_embedder(bundle=bundle, encoder=encoder, max_pixels=max_pixels, fingerprint=fingerprint)


def _fill(
    folder: Path,
    sources: tuple[Path, ...],
    embedder: Embedder | None,
    kind: str,
    limits: ImageLimits,
    *,
    create: bool,
) -> IngestReport:
    from gog_edge.image.frame import Frame
    from gog_edge.search.local.index import LocalIndex
    from gog_edge.search.local.ingest import add_records
    from gog_edge.search.local.readers import count_items, read_source

    readers = [read_source(source, kind=kind) for source in sources]  # refuses what can't be read
    with LocalIndex(folder, writable=True, create=create) as index, progress_bar() as bar:
        task = bar.add_task("indexing", total=sum(count_items(s) for s in sources))
        report = add_records(
            index,
            chain(*readers),
            embedder=embedder,
            load_frame=lambda path: Frame.open(path, limits=limits),
            progress=lambda done: bar.update(task, completed=done),
        )
        bar.update(task, total=bar.tasks[task].completed)
        graph: list[Any] = []

        def grown(done: int, total: int) -> None:
            if not graph:
                graph.append(bar.add_task("vector graph", total=total))
            bar.update(graph[0], completed=done)

        index.prepare(grown)
    return report


def _region(box: str | None) -> Any:
    if box is None:
        return None
    from gog_edge.types import Region

    try:
        x0, y0, x1, y1 = (float(v) for v in box.split(","))
    except ValueError as e:
        raise UsageError(f"--box {box!r}: four numbers x0,y0,x1,y1 are needed") from e
    return Region(x0, y0, x1, y1)


def _print_report(index: Path, report: IngestReport, as_json: bool) -> None:
    if as_json:
        print_json({"index": str(index), **report.as_json()})
        return
    out = stdout()
    out.print(
        f"{index}: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{report.vectors} pictures embedded ({report.reused_vectors} known) in {report.seconds:.1f} s"
    )
    err = stderr()
    if report.not_embedded:
        err.print(
            styled(
                "[yellow]{} not embedded[/]: without --bundle or --encoder this index is searched by text only",
                counted(report.not_embedded, "picture"),
            )
        )
    for kind, lines in report.problems.items():
        err.print(styled("[yellow]{} x {}[/]", len(lines), kind))
        for line in lines[: report.MAX_LINES]:
            err.print(f"  {line}")
        if len(lines) > report.MAX_LINES:
            err.print(f"  … {len(lines) - report.MAX_LINES} more")
