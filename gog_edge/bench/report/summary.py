"""Several reports of one machine as two Markdown tables: what everybody took, and the goals beside what was reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gog_edge.bench.report.terminal import format_place, format_value
from gog_edge.bench.result import Cell, Report, one_of_each
from gog_edge.bench.statistics import Summary
from gog_edge.bench.suite import BESIDE, OURS


@dataclass(frozen=True)
class Column:
    """One column of the first table: the median of a cell, without its unit where the title has it."""

    title: str
    scenario: str
    stage: str
    scale: float = 1.0
    digits: int = 1


COLUMNS = (
    Column("load s", "load", "load to first token"),
    Column("peak MB", "agent", "peak resident", 1e-6, 0),
    Column("encode s", "encode", "encode"),
    Column("prefill tok/s", "decode", "prefill rate", digits=0),
    Column("decode tok/s", "decode", "decode rate"),
    Column("agent: turn 1 s", "agent", "turn 1 total"),
    Column("turn 2 s", "agent", "turn 2 total"),
    Column("both s", "agent", "total"),
    Column("language part alone: both s", "agent-text", "total"),
)


@dataclass(frozen=True)
class Goal:
    """A ratio ours / theirs that is to be at most (or, for rates, at least) `bound`. `peer`: name or its beginning;
    the best mode of a peer counts. `parts`: ours against the sum of these stages of the same run. With neither: the
    share of the roofline. `seconds`: the median itself is compared with `bound`."""

    what: str
    scenario: str
    stage: str
    bound: float
    peer: str = ""
    at_least: bool = False
    parts: tuple[str, ...] = ()
    seconds: bool = False


GOALS = (
    Goal("agent job", "agent", "total", 0.65, "openvino-genai"),
    Goal("agent job", "agent", "total", 0.4, "llama.cpp"),
    Goal("agent job", "agent", "total", 0.5, "transformers"),
    Goal("encode", "encode", "encode", 0.65, "openvino-genai"),
    Goal("prefill", "decode", "prefill rate", 1.2, "openvino-genai", at_least=True),
    Goal("decode", "decode", "decode rate", 1.1, "onnxruntime-genai", at_least=True),
    Goal("decode, of the bandwidth", "decode", BESIDE, 0.85, at_least=True),
    Goal("decode in turn 1, of the bandwidth", "agent", f"turn 1 {BESIDE}", 0.85, at_least=True),
    Goal("decode in turn 2, of the bandwidth", "agent", f"turn 2 {BESIDE}", 0.85, at_least=True),
    Goal(
        "turn 2",
        "agent",
        "turn 2 total",
        1.1,
        parts=("turn 2 crop", "turn 2 encode", "turn 2 prefill", "turn 2 decode"),
    ),
    Goal("weights + KV + one image's activations", "agent", "peak resident", 0.8, at_least=True),
    Goal("warm load to the first token", "load", "warm load to first token", 1.5, seconds=True),
    Goal("crop, one thread", "crop", "crop", 1 / 5, "transformers, fast processor"),
    Goal("crop, one thread", "crop", "crop", 1 / 2, "Pillow + numpy"),
    Goal("crop, one thread", "crop", "crop", 1.8, "gog-edge 2 threads", at_least=True),
)


def markdown(reports: Sequence[Report]) -> str:
    """Both tables; a cell that was not measured stays blank. Columns and rows without any value are left out."""
    return "\n\n".join(t for t in (_measured(reports), _goals(reports)) if t) + "\n"


def _measured(reports: Sequence[Report]) -> str:
    cells = one_of_each(reports)
    subjects = dict.fromkeys(c.subject for c in cells)
    grid = {s: [_median(cells, s, column) for column in COLUMNS] for s in subjects}
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in grid.values())]
    rows = [[s, *(row[i] for i in used)] for s, row in grid.items() if any(row)]
    return _table(["", *(COLUMNS[i].title for i in used)], rows) if used else ""


def _median(cells: Sequence[Cell], subject: str, column: Column) -> str:
    found = [c for c in cells if c.key == (column.scenario, subject, column.stage, None)]
    return f"{found[0].summary.p50 * column.scale:.{column.digits}f}" if found else ""


def _goals(reports: Sequence[Report]) -> str:
    rows = [row for goal in GOALS if (row := _goal(reports, goal)) is not None]
    return _table(["", "against", "goal", "reached", "range", "runs"], rows) if rows else ""


def _goal(reports: Sequence[Report], goal: Goal) -> list[str] | None:
    """The peer's mode in which we look worst; None where nothing was measured."""
    sign = "≥" if goal.at_least else "≤"
    if goal.parts:
        share = _of_parts(one_of_each(reports), goal)
        found = [] if share is None else [("crop, encoding, prefill of what is new, decoding", share)]
    elif goal.seconds:
        found = [("", c.summary) for c in one_of_each(reports) if c.key == (goal.scenario, OURS, goal.stage, None)]
    elif not goal.peer:
        kinds = {"B": "what is resident", "%": "limit right beside each run"}
        found = [(kinds.get(c.unit, "limit of the same run"), _shares(c)) for c in _ours(reports, goal)]
    else:
        found = [
            (theirs.subject, ratio)
            for r in reports
            for ours, theirs, ratio in r.ratios(OURS)
            if (ours.scenario, ours.stage) == (goal.scenario, goal.stage) and theirs.subject.startswith(goal.peer)
        ]
    if not found:
        return None
    pick = min if goal.at_least else max
    against, ratio = pick(found, key=lambda f: f[1].p50)
    met = ratio.p50 >= goal.bound if goal.at_least else ratio.p50 <= goal.bound
    unit = " s" if goal.seconds else "x"
    reached = f"**{ratio.p50:.2f}{unit}**" if met else f"{ratio.p50:.2f}{unit} (missed)"
    return [
        goal.what,
        against,
        f"{sign} {goal.bound:.3g}{unit}",
        reached,
        f"{ratio.minimum:.2f} to {ratio.maximum:.2f}",
        str(ratio.n),
    ]


def _ours(reports: Sequence[Report], goal: Goal) -> Iterator[Cell]:
    for cell in one_of_each(reports):
        if (cell.scenario, cell.stage, cell.subject) == (goal.scenario, goal.stage, OURS) and cell.limit:
            yield cell


def _of_parts(cells: Sequence[Cell], goal: Goal) -> Summary | None:
    """Run by run; None where a part was not measured as often."""
    ours = {c.stage: c.samples for c in cells if (c.scenario, c.subject, c.x) == (goal.scenario, OURS, None)}
    wholes = ours.get(goal.stage, ())
    parts = [ours.get(part, ()) for part in goal.parts]
    if not wholes or any(len(p) != len(wholes) for p in parts):
        return None
    return Summary("x", tuple(whole / sum(run) for whole, run in zip(wholes, zip(*parts))))


def _shares(cell: Cell) -> Summary:
    limit = cell.limit or 1.0
    return Summary("x", tuple(limit / s if cell.lower_is_better else s / limit for s in cell.samples))


def stages(reports: Sequence[Report]) -> str:
    """Our own stages beside the roofline of their run, as a Markdown table."""
    rows = []
    for cell in one_of_each(reports):
        share = cell.of_limit
        if cell.subject != OURS or share is None or cell.limit is None:
            continue
        values = (format_value(cell.summary.p50, cell.unit), format_value(cell.limit, cell.unit))
        rows.append([cell.scenario, cell.stage, format_place(cell.x), *values, f"{share:.0%}"])
    return _table(["scenario", "stage", "at", "median", "limit", "of limit"], rows) + "\n" if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
