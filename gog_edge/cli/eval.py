"""`gog-edge eval DATASET`: measure a policy on a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gog_edge.cli.common.bundles import bundle_option, chosen
from gog_edge.cli.common.console import print_json, progress_bar, stderr, stdout, styled
from gog_edge.cli.common.options import (
    SECONDS,
    image_options,
    results_options,
    sampling_options,
    take_image_limits,
    take_sampling,
)
from gog_edge.disk.files import write_text
from gog_edge.errors import UsageError

if TYPE_CHECKING:
    from gog_edge.evaluation.samples import Sample
    from gog_edge.evaluation.worker import AgentSpec, WorkerSpec

_PATH = click.Path(path_type=Path)
_KINDS = ("glance", "gaze", "zoom", "text_search", "visit")


@click.command("eval")
@click.argument("dataset", type=_PATH)
@bundle_option("The exported policy.")
@click.option("--format", "form", default="", help="fvqa, simplevqa, mmsearch, livevqa, webwatcher, dynvqa or gog.")
@click.option("--index", envvar="GOG_EDGE_INDEX", type=_PATH, help="A local index to search.")
@click.option("--search", type=_PATH, help="A TOML file of search providers (docs/search.md).")
@click.option("--images", multiple=True, type=_PATH, help="Folder of the data set's pictures; may be repeated.")
@click.option("--download", is_flag=True, help="Fetch images given as URLs (kept in the cache folder).")
@click.option("--out", type=_PATH, default="results.jsonl", show_default=True, help="Results, one JSON line each.")
@click.option("--restart", is_flag=True, help="Start over instead of continuing --out.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--ray", "cluster", metavar="ADDRESS", help="Spread over a Ray cluster: host:6379, ray://…, or auto.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads of an engine; 0 shares the cores.")
@click.option(
    "--at-once",
    type=click.IntRange(1, 64),
    help="Questions that run side by side, with --workers 1. Default: as many as share the policy's runs (8 with "
    "native operators, else 1); 1 with --deadline.",
)
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Only N questions, drawn from all of them.")
@click.option(
    "--sample-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which ones --limit draws."
)
@click.option("--first", is_flag=True, help="Let --limit take the first N questions instead.")
@click.option("--deadline", type=SECONDS, help="Per question; 2s or 500ms.")
@click.option("--max-turns", type=click.IntRange(min=0), default=0, help="Rounds before the forced answer.")
@click.option("--engine", default="", help="cpu, cuda, tensorrt …, openai:URL")
@click.option("--dialect", default="", help="Name or file that replaces the bundle's dialect.")
@click.option("--early-knowledge", is_flag=True, help="Search with the question first and start from the results.")
@results_options
@click.option("--expand", type=click.IntRange(0, 100), default=0, help="Append up to N related entries of the index.")
@click.option("--grammar", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@sampling_options
@image_options
@click.option("--without", multiple=True, type=click.Choice(_KINDS), help="Remove an action (ablation).")
@click.option("--no-gaze", is_flag=True, help="Same as --without gaze --without zoom.")
@click.option(
    "--inject",
    metavar="[instructions|harmless|FILE]",
    is_flag=False,
    flag_value="instructions",
    help="Plant texts in every result: instructions (does the policy obey them?), harmless ones as the control, or "
    "those of a file, one a line.",
)
@click.option("--against", type=_PATH, help="The --out of another run over the same questions: what changed?")
@click.option("--judge-url", help="OpenAI-compatible endpoint of an LLM judge, up to /v1.")
@click.option("--judge-model", default="", help="Model of the judge.")
@click.option("--judge-key-env", default="OPENAI_API_KEY", show_default=True, help="Variable with the judge's key.")
@click.option("--summary", type=_PATH, help="Write the summary as JSON.")
@click.option("--gallery", type=_PATH, help="Write an HTML page of the failures.")
@click.option("--gallery-limit", type=click.IntRange(min=1), default=100, show_default=True, help="Failures shown.")
@click.option("--report", "report_only", is_flag=True, help="Ask nothing; report the results in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON instead of the table.")
def command(
    dataset: Path,
    bundle: Path | None,
    form: str,
    out: Path,
    restart: bool,
    workers: int,
    cluster: str | None,
    limit: int,
    sample_seed: int,
    first: bool,
    against: Path | None,
    judge_url: str | None,
    judge_model: str,
    judge_key_env: str,
    summary: Path | None,
    gallery: Path | None,
    gallery_limit: int,
    report_only: bool,
    as_json: bool,
    **agent: Any,
) -> None:
    """Ask a policy every question of DATASET and report accuracy by skill.

    Stopped at any moment, the same command continues it. DATASET is JSONL, JSON, parquet, or a folder of them.
    """
    if not report_only:
        bundle = chosen(bundle)
    if judge_url and not judge_model:
        raise UsageError("--judge-url needs --judge-model")
    from gog_edge.evaluation.datasets import draw, read_dataset
    from gog_edge.evaluation.injection import planted_texts
    from gog_edge.evaluation.results import read_results

    before = read_results(against)[1] if against is not None else None  # a wrong file is found before the run
    if agent["inject"]:
        planted_texts(agent["inject"])  # so is one of texts to plant
    samples, problems = read_dataset(dataset, form=form, limit=limit if first else 0)
    if limit and not first and limit < len(samples):
        everything, samples = len(samples), draw(samples, limit, sample_seed)
        stderr().print(f"{limit} of {everything} questions, drawn with --sample-seed {sample_seed}")
    for line in problems[:5]:
        stderr().print(styled("[yellow]skipped[/] {}", line))
    if len(problems) > 5:
        stderr().print(styled("[yellow]skipped[/] {} more rows", len(problems) - 5))
    spec = _worker_spec(dataset, bundle or Path(), workers, agent)
    if not report_only:
        _run(samples, spec, _settings(dataset, samples, form, spec), out, restart, workers, cluster)
    settings, rows = read_results(out)
    wanted = {s.id for s in samples}
    rows = [r for r in rows if str(r["id"]) in wanted]
    _say_errors([str(r["error"]) for r in rows if r.get("error")])
    verdicts = _judge(rows, judge_url, judge_model, judge_key_env, out) if judge_url else None
    _report(rows, settings, verdicts, before, summary, as_json)
    if gallery is not None:
        _gallery(gallery, rows, samples, spec, verdicts, gallery_limit)


def _worker_spec(dataset: Path, bundle: Path, workers: int, agent: dict[str, Any]) -> WorkerSpec:
    from gog_edge.disk.paths import cache_directory
    from gog_edge.evaluation.runner import default_threads
    from gog_edge.evaluation.worker import AgentSpec, WorkerSpec

    if workers > 1 and (agent["at_once"] or 1) > 1:
        raise UsageError("--at-once is for one process: leave --workers out")
    alone = workers > 1 or agent["deadline"] is not None  # others would take the time of a deadline
    without = {*agent["without"], *(("gaze", "zoom") if agent["no_gaze"] else ())}
    made: AgentSpec = AgentSpec(
        bundle=str(bundle),
        index=str(agent["index"] or ""),
        search=str(agent["search"] or ""),
        dialect=agent["dialect"],
        engine=agent["engine"],
        without=tuple(sorted(without)),
        inject=agent["inject"] or "",
        grammar=agent["grammar"],
        sampling=take_sampling(agent),
        max_turns=agent["max_turns"],
        early_knowledge=agent["early_knowledge"],
        results=agent["results"],
        cut=agent["cut"],
        expand=agent["expand"],
        threads=agent["threads"] or (default_threads(workers) if workers > 1 else 0),
        at_once=agent["at_once"] or int(alone),
    )
    home = dataset if dataset.is_dir() else dataset.parent
    return WorkerSpec(
        agent=made,
        image_roots=tuple(str(r) for r in (*agent["images"], home)),
        downloads=str(cache_directory() / "eval-images") if agent["download"] else "",
        deadline=agent["deadline"],
        limits=take_image_limits(agent),
    )


def _settings(dataset: Path, samples: Sequence[Sample], form: str, spec: WorkerSpec) -> dict[str, Any]:
    """What makes results comparable. How many processes there are, or questions at a time, is no part of it."""
    from gog_edge.agent.loader import open_bundle

    agent = dataclasses.asdict(spec.agent)
    for name in ("threads", "at_once", "bundle"):
        agent.pop(name)
    agent |= agent.pop("sampling")
    opened = open_bundle(spec.agent.bundle, spec.agent.engine or None)
    return {
        "dataset": dataset.name,
        "format": form,
        "bundle": opened.manifest.name,
        "fingerprint": opened.fingerprint,
        "deadline": spec.deadline,
        **agent,
    }


def _run(
    samples: Sequence[Sample],
    spec: WorkerSpec,
    settings: dict[str, Any],
    out: Path,
    restart: bool,
    workers: int,
    cluster: str | None,
) -> None:
    from gog_edge.evaluation.results import ResultsFile
    from gog_edge.evaluation.runner import run_samples

    if restart:
        out.unlink(missing_ok=True)
    results = ResultsFile(out, settings)
    left = sum(s.id not in results.done for s in samples)
    try:
        with progress_bar() as bar:
            task = bar.add_task(f"asking ({len(samples) - left} done before)", total=left)
            right = asked = 0

            def step(row: dict[str, Any]) -> None:
                nonlocal right, asked
                asked += 1
                right += row["scores"]["subem"] >= 1.0
                bar.update(task, advance=1, description=f"asking  SubEM {right / asked * 100:.1f}")

            if cluster:
                from gog_edge.evaluation.ray_cluster import run_on_ray

                typed = click.get_current_context().get_parameter_source("workers")
                given = workers if typed is click.core.ParameterSource.COMMANDLINE else 0
                run_on_ray(samples, spec, results, address=cluster, workers=given, progress=step)
            else:
                run_samples(samples, spec, results, workers=workers, progress=step)
    finally:
        results.close()


def _say_errors(errors: Sequence[str]) -> None:
    """Why questions have no answer at all: the commonest reasons; a column of the table only counts them."""
    from collections import Counter

    shown = Counter(errors).most_common(3)
    for error, count in shown:
        stderr().print(styled("[yellow]no answer to {}[/] {}", count, error))
    if others := len(errors) - sum(count for _, count in shown):
        stderr().print(styled("[yellow]no answer to {} more[/] see `error` in the results", others))


def _judge(rows: Sequence[dict[str, Any]], url: str, model: str, key_env: str, out: Path) -> dict[str, bool]:
    from gog_edge.evaluation.llm_judge import JudgeSpec, LlmJudge

    judge = LlmJudge(JudgeSpec(url, model, key_env))
    try:
        with progress_bar() as bar:
            task = bar.add_task("judging", total=len(rows))
            path = out.with_name(out.name + ".verdicts")
            verdicts, problems = judge.judge_all(rows, path, lambda: bar.advance(task))
            bar.update(task, completed=len(rows))
    finally:
        judge.close()
    for line in problems[:5]:
        stderr().print(styled("[yellow]not judged[/] {}", line))
    return verdicts


def _report(
    rows: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    verdicts: dict[str, bool] | None,
    before: Sequence[dict[str, Any]] | None,
    path: Path | None,
    as_json: bool,
) -> None:
    import json

    from gog_edge.evaluation.comparison import compare, lines
    from gog_edge.evaluation.report import summarise, table_rows

    found = summarise(rows, settings, verdicts)
    if before is not None:
        found["against"] = compare(rows, before)
    if path is not None:
        write_text(path, json.dumps(found, indent=1) + "\n")
    if as_json:
        print_json(found)
        return
    names, cells = table_rows(found)
    table = Table(box=None, title=f"{settings.get('dataset', '')}: {settings.get('bundle', '')}", title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name == "skill" else "right")
    for row in cells:
        table.add_row(*row, style="bold" if row[0] == "all" else "")
    stdout().print(table)
    for line in lines(found["against"]) if before is not None else ():
        stdout().print(line)


def _gallery(
    path: Path,
    rows: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    spec: WorkerSpec,
    verdicts: dict[str, bool] | None,
    limit: int,
) -> None:
    from gog_edge.evaluation.gallery import failures, write_gallery
    from gog_edge.evaluation.images import ImageStore

    roots = tuple(Path(r) for r in spec.image_roots)
    store = ImageStore(roots, Path(spec.downloads) if spec.downloads else None, limits=spec.limits)
    by_id = {s.id: s for s in samples}
    wrong = failures(rows, verdicts)
    shown = write_gallery(
        path,
        wrong,
        lambda identity: store.open(by_id[identity].images[0]),
        title=f"{len(wrong)} failures of {len(rows)}",
        limit=limit,
    )
    stderr().print(f"{path}: {shown} of {len(wrong)} failures")
