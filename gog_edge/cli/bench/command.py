"""`gog-edge bench [SCENARIO…]`: measure; `bench diff`, `bench make-checkpoint`, `bench budget`, `bench peers`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gog_edge.cli.bench.camera import camera_options, stream_of
from gog_edge.cli.bench.group import DefaultRun
from gog_edge.cli.bench.self_check import command as self_check_command
from gog_edge.cli.common.bundles import bundle_option, default
from gog_edge.cli.common.console import progress_bar, stderr, stdout, styled
from gog_edge.cli.common.options import SECONDS, threads_option
from gog_edge.errors import UsageError
from gog_edge.runtime.memory_plan import DEVICES

if TYPE_CHECKING:
    from gog_edge.bench.machine.roofline import BesideProbe, Roofline
    from gog_edge.bench.peers import PeerSubject
    from gog_edge.bench.result import Cell, Report
    from gog_edge.bench.scenarios.camera import Stream
    from gog_edge.bench.scenarios.parts import Given
    from gog_edge.bench.subject import Subject
    from gog_edge.bench.suite import Samples
    from gog_edge.bench.workloads import Workload
    from gog_edge.bundle import Bundle

    MakeCells = Callable[[Roofline | None], list[Cell]]


@click.group("bench", cls=DefaultRun)
def command() -> None:
    """Measure where the time, memory and energy go: gog-edge bench [run] SCENARIO… --bundle DIR."""


command.add_command(self_check_command)


@command.command("run")
@click.argument("scenarios", nargs=-1)
@bundle_option(
    "The bundle to measure. Default for scenarios that need one: the one last exported or named.", asks=False
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The checkpoint for the export scenario.")
@click.option("--engine", help="cpu, cuda, tensorrt …; default: what the bundle was exported for.")
@click.option("--compare", help="Peers to run interleaved with ours: openvino-genai,llama.cpp:http://host:port/v1 …")
@click.option("--peer-model", "models", multiple=True, metavar="NAME=DIR", help="Model of a peer; may be repeated.")
@click.option("--peer-python", "pythons", multiple=True, metavar="NAME=PYTHON", help="Python to use for a peer.")
@click.option("--peer-program", "programs", multiple=True, metavar="NAME=PATH", help="The server to start: llama.cpp.")
@click.option("--peer-threads", type=click.IntRange(min=1), help="Threads of each peer; default: its own choice.")
@click.option("--repeats", type=click.IntRange(min=1), help="Counted runs; default: the scenario's own.")
@click.option("--warmup", type=click.IntRange(min=0), help="Warm-up runs; default: the scenario's own.")
@click.option("--most", type=float, help="End of growth curves: 8192 tokens, 4 images.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page with plots.")
@threads_option
@camera_options
@click.option("--no-roofline", is_flag=True, help="Do not measure the machine's limits (saves a few seconds).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line last.")
@click.option("--list", "list_them", is_flag=True, help="List the scenarios.")
def run(
    scenarios: tuple[str, ...],
    bundle: Path | None,
    checkpoint: Path | None,
    engine: str | None,
    compare: str | None,
    models: tuple[str, ...],
    pythons: tuple[str, ...],
    programs: tuple[str, ...],
    peer_threads: int | None,
    repeats: int | None,
    warmup: int | None,
    most: float | None,
    out: Path | None,
    html: Path | None,
    no_roofline: bool,
    as_json: bool,
    list_them: bool,
    **camera: Any,
) -> None:
    """Run SCENARIO…; without any, all that can run with what was given."""
    from gog_edge.bench.peers import PeerOptions, create_peers
    from gog_edge.bench.report import terminal as text
    from gog_edge.bench.report.plots import require_matplotlib
    from gog_edge.bench.scenarios.parts import PIECES
    from gog_edge.bench.workloads import WORKLOADS

    known = {**{n: c[0].about for n, c in WORKLOADS.items()}, **{n: _about(p) for n, p in PIECES.items()}}
    if list_them:
        for name, about in known.items():
            stdout().print(f"{name:16} {about}")
        return
    for name in scenarios:
        if name not in known:
            raise UsageError(f"there is no scenario {name!r}: one of {', '.join(known)}")
    if bundle is None and compare is None and set(scenarios) - {"crop", "export"}:
        bundle = default()
    needs = dict.fromkeys(known, bundle) | {"crop": ".", "export": checkpoint}
    long = "growth", "conversation"
    chosen = scenarios or tuple(n for n in known if not n.startswith(long) and needs[n] is not None)
    if html is not None:
        require_matplotlib()  # before anything is measured
    skipped: dict[str, str] = {}
    peers = create_peers(compare, PeerOptions(models, pythons, programs, peer_threads or 0), skipped)
    stream = stream_of(camera)
    wanted = _Wanted(chosen, bundle, checkpoint, engine, peers, repeats, warmup, most, out, stream, not no_roofline)
    report = _measure(wanted, skipped)
    if not report.cells:
        raise UsageError(f"nothing was measured: {'; '.join(skipped.values())}")
    stdout().print(text.render(report))
    if html is not None:
        from gog_edge.bench.report import html as pages

        pages.write([report], html)
    if as_json:
        _print_line(report)


def _about(piece: Any) -> str:
    return str(piece.__doc__).partition(":")[0].partition(";")[0].strip()


@dataclass(frozen=True)
class _Wanted:
    """What a run was asked for. `repeats`, `warmup`: instead of each scenario's own."""

    scenarios: Sequence[str]
    bundle: Path | None
    checkpoint: Path | None
    engine: str | None
    peers: Sequence[PeerSubject]
    repeats: int | None
    warmup: int | None
    most: float | None
    out: Path | None
    stream: Stream
    roofline: bool


def _measure(wanted: _Wanted, skipped: dict[str, str]) -> Report:
    """The report, written to `out` after every scenario: a run that is ended early loses its last one only.

    The machine's limits are measured before and after; the better ones count for all cells.
    """
    from gog_edge.bench.machine import probes
    from gog_edge.bench.machine.roofline import BesideProbe, measure_apart
    from gog_edge.bench.result import Report
    from gog_edge.bundle import Bundle
    from gog_edge.serde import encode

    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = probes.describe_machine()
    opened = Bundle.open(wanted.bundle) if wanted.bundle is not None else None
    limits = measure_apart() if wanted.roofline else None
    beside = BesideProbe() if limits is not None and opened is not None else None
    made: list[MakeCells] = []

    def report() -> Report:
        about = {**machine, "peers": {p.name: p.about for p in wanted.peers if p.about}}
        cells = tuple(cell for make in made for cell in make(limits))
        roofline = encode(limits) if limits is not None else {}
        return Report("gog-edge-bench", started, about, roofline, _describe(opened), cells, skipped)

    for make in _scenarios(wanted, opened, limits, beside, skipped):
        made.append(make)
        if wanted.out is not None:
            report().save(wanted.out)
    if limits is not None and made:
        limits = limits.best(measure_apart())  # the neighbours of a virtual machine come and go
        if beside is not None:
            limits = replace(limits, read_gbs=max(limits.read_gbs, beside.best))
    found = report()
    if wanted.out is not None and found.cells:
        found.save(wanted.out)
    return found


def _describe(bundle: Bundle | None) -> dict[str, Any]:
    if bundle is None:
        return {}
    m = bundle.manifest
    return {"name": m.name, "fingerprint": bundle.fingerprint, "precision": m.precision, "backend": m.backend}


def _scenarios(
    wanted: _Wanted,
    bundle: Bundle | None,
    limits: Roofline | None,
    beside: BesideProbe | None,
    skipped: dict[str, str],
) -> Iterator[MakeCells]:
    """Conversations and scenarios, one after another, measured: its cells, given the machine's limits."""
    from gog_edge.bench.local_subject import LocalSubject
    from gog_edge.bench.result import Cell
    from gog_edge.bench.scenarios.parts import PIECES, Given
    from gog_edge.bench.suite import load_subjects, run_conversation
    from gog_edge.bench.workloads import WORKLOADS

    subjects: list[Subject] = []
    repeats, peers = wanted.repeats, wanted.peers
    ours = None if bundle is None else LocalSubject(bundle.root, engine=wanted.engine)
    salt = time.time_ns()
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=None)

        def tell(text: str) -> None:
            bar.update(task, description=text)

        try:
            for name in wanted.scenarios:
                tell(name)
                if name in PIECES:
                    given = Given(wanted.bundle, repeats or 5, limits, wanted.stream, wanted.checkpoint)
                    yield _fixed(_piece(name, given, skipped))
                    continue
                if ours is None and not peers:
                    skipped[name] = "no bundle was given (--bundle DIR)"
                    continue
                if not subjects:
                    if ours is not None:
                        yield _fixed([Cell("load", ours.name, "load to first token", "s", (ours.load(),))])
                        subjects.append(ours)
                    loaded, seconds = load_subjects(peers, skipped, tell)
                    subjects.extend(loaded)
                    yield _fixed(seconds)
                for whole in WORKLOADS[name]:
                    conversation = whole.until(wanted.most)
                    if conversation is None:
                        continue
                    samples, failed = run_conversation(
                        conversation, subjects, repeats, tell, wanted.warmup, salt, beside
                    )
                    skipped |= {f"{conversation.name} {who}": why for who, why in failed.items()}
                    yield partial(_conversation_cells, conversation, samples, bundle)
        finally:
            for peer in peers:
                peer.close()
            if ours is not None:
                ours.close()
            if beside is not None:
                beside.close()


def _fixed(cells: list[Cell]) -> MakeCells:
    return lambda limits: cells


def _conversation_cells(
    conversation: Workload, samples: dict[str, Samples], bundle: Bundle | None, limits: Roofline | None
) -> list[Cell]:
    from gog_edge.bench.suite import cells

    return list(cells(conversation, samples, bundle, limits))


def _piece(name: str, given: Given, skipped: dict[str, str]) -> list[Cell]:
    """A scenario that is not a conversation; one that can't run here is skipped with its reason."""
    from gog_edge.bench.scenarios.parts import PIECES
    from gog_edge.errors import BenchError

    try:
        return list(PIECES[name](given))
    except BenchError as e:
        skipped[name] = str(e)
        return []


def _print_line(report: Report) -> None:
    import json

    from gog_edge.serde import encode

    sys.stdout.write(json.dumps(encode(report)) + "\n")


@command.command("diff")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--threshold", default=0.05, show_default=True, help="Differences below this fraction do not count.")
@click.option("--peers", is_flag=True, help="Judge the peers too; by default only our own figures can fail.")
def diff(before: Path, after: Path, threshold: float, peers: bool) -> None:
    """Compare two JSON reports; exit code 1 when something of ours got worse beyond noise, or is missing."""
    from gog_edge.bench.report import diff as comparison
    from gog_edge.bench.result import load

    old, new = load(before), load(after)
    gone = [c for c in comparison.missing(old, new) if peers or c.subject.startswith("gog-edge")]
    worse = [c for c in comparison.compare(old, new, threshold) if c.worse]
    worse = [c for c in worse if peers or c.after.subject.startswith("gog-edge")]
    out = stdout()
    for change in worse:
        c = change.after
        out.print(
            styled("[red]worse[/] {} {} {}: ", c.scenario, c.subject, c.stage).append(
                f"{change.ratio:.2f}x (beyond noise: {change.worse:.0%})"
            )
        )
    for cell in gone:
        out.print(styled("[red]missing[/] {} {} {}", cell.scenario, cell.subject, cell.stage))
    if worse or gone:
        raise click.exceptions.Exit(1)
    out.print("nothing got worse beyond noise")


@command.command("show")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Markdown tables: medians of all subjects, goals, our share of limits.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the page with plots, one for all of them.")
def show(reports: tuple[Path, ...], markdown: bool, html: Path | None) -> None:
    """Show JSON reports again; several of one machine are put together with --markdown."""
    from gog_edge.bench.report import html as pages
    from gog_edge.bench.report import summary
    from gog_edge.bench.report import terminal as text
    from gog_edge.bench.result import load

    found = [load(path) for path in reports]
    if html is not None:
        pages.write(found, html)
    if markdown:
        stdout().print(summary.markdown(found) + "\n" + summary.stages(found), soft_wrap=True)
    elif html is None:
        for report in found:
            stdout().print(text.render(report))


@command.command("make-checkpoint")
@click.argument("shape")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option("--seed", default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
def make_checkpoint(shape: str, output: Path, seed: int, dtype: str) -> None:
    """Write a checkpoint of a published SHAPE (qwen3-vl-2b …) with seeded random weights."""
    try:
        from gog_edge.export.synthetic import checkpoint
    except ImportError as e:
        raise UsageError(f"make-checkpoint needs {e.name}: pip install 'gog-edge[export]'") from e
    with progress_bar() as bar:
        task = bar.add_task(shape, total=None)
        checkpoint.make_checkpoint(
            shape, output, seed, dtype, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    stderr().print(f"wrote {output}; export it with: gog-edge export {output} -o BUNDLE")


@command.command("budget")
@bundle_option("Only for this bundle; default: every published shape.", asks=False)
@click.option("--deadline", type=SECONDS, required=True, help="Time for one answer: 500ms, 2s.")
@click.option("--words", default=310, show_default=True, help="Text tokens read in all turns.")
@click.option("--tokens", default=100, show_default=True, help="Tokens written in all turns.")
@click.option(
    "--cached",
    type=click.Choice(["nothing", "features", "prompt"]),
    default="nothing",
    show_default=True,
    help="What is known of the glance: its features, or (asked again in one session) all of the prompt before it.",
)
@click.option("--limits", "report", type=click.Path(path_type=Path), help="Take the limits of this JSON report.")
@click.option("--device", type=click.Choice(list(DEVICES)), help="Take the GPU's limits of this board's data sheet.")
def budget(
    bundle: Path | None, deadline: float, words: int, tokens: int, cached: Any, report: Path | None, device: str | None
) -> None:
    """Which policy, precision and image budget fit DEADLINE on this machine, at its measured roofline."""
    from gog_edge.bench.budget import BOARDS, policies, table
    from gog_edge.bench.machine.roofline import measure
    from gog_edge.bundle import Bundle

    if report is not None and device is not None:
        raise UsageError("--limits and --device both say how fast the machine is: give one of them")
    opened = Bundle.open(bundle) if bundle is not None else None
    if device is not None:
        limits, whose = BOARDS[device], f"the data sheet of {device}'s GPU"
    elif report is not None:
        limits, whose = _limits_of(report), f"the limits in {report.name}"
    else:
        limits, whose = measure(), "this machine's measured limits"
    stdout().print(table(policies(opened), limits, deadline, words, tokens, cached, whose))


def _limits_of(report: Path) -> Roofline:
    from gog_edge.bench.machine.roofline import Roofline
    from gog_edge.bench.result import load
    from gog_edge.serde import decode

    found = load(report).roofline
    if not found:
        raise UsageError(f"{report} holds no limits: it was made with --no-roofline")
    return decode(Roofline, found, report.name)
