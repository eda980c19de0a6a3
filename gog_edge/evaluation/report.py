"""Results as numbers: overall, by skill, seen and held out; with the spread that the sample size allows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
_Z = 1.96


def summarise(rows: Rows, settings: Mapping[str, Any], verdicts: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """The JSON summary: settings, totals, per skill, seen against held out.

    Args:
        verdicts: of an LLM judge, by id; questions without one do not count in its column.
    """
    skills = sorted({str(r.get("skill") or "all") for r in rows})
    held = {True: "held out", False: "seen"}
    return {
        "settings": dict(settings),
        "all": group(rows, verdicts),
        "skills": {s: group([r for r in rows if (r.get("skill") or "all") == s], verdicts) for s in skills},
        "split": {
            name: group(part, verdicts)
            for flag, name in held.items()
            if (part := [r for r in rows if r.get("held_out") is flag])
        },
    }


def group(rows: Rows, verdicts: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """Figures of some results: counts, means of the metrics with 95 % intervals, time, actions."""
    n = len(rows)
    figures: dict[str, Any] = {"n": n, "errors": sum(bool(r.get("error")) for r in rows)}
    for metric in ("em", "subem", "f1", "recall"):
        figures[metric] = _mean([float(r.get("scores", {}).get(metric, 0.0)) for r in rows])
    figures["subem_95"] = list(wilson(sum(r.get("scores", {}).get("subem", 0.0) >= 1.0 for r in rows), n))
    if verdicts is not None:
        judged = [verdicts[str(r["id"])] for r in rows if str(r["id"]) in verdicts]
        figures["judge"] = _mean([float(v) for v in judged]) if judged else None
        figures["judged"] = len(judged)
    seconds = sorted(float(r.get("seconds", 0.0)) for r in rows)
    figures["seconds_p50"] = round(statistics.median(seconds), 3) if seconds else 0.0
    figures["seconds_p95"] = round(seconds[min(n - 1, math.ceil(0.95 * n) - 1)], 3) if seconds else 0.0
    actions: dict[str, float] = {}
    for row in rows:
        for kind, count in (row.get("actions") or {}).items():
            actions[kind] = actions.get(kind, 0) + count
    figures["actions"] = {k: round(v / n, 3) for k, v in sorted(actions.items())} if n else {}
    figures["steps"] = _mean([float(len(r.get("steps") or ())) for r in rows])
    figures["obeyed"] = sum(bool(r.get("obeyed")) for r in rows)
    stops: dict[str, int] = {}
    for row in rows:
        stops[str(row.get("stop", "error"))] = stops.get(str(row.get("stop", "error")), 0) + 1
    figures["stops"] = dict(sorted(stops.items()))
    ious = [float(r["target_iou"]) for r in rows if r.get("target_iou") is not None]
    if ious:
        figures["target_iou"] = _mean(ious)
        figures["target_hit"] = _mean([float(v >= 0.5) for v in ious])
    return figures


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, JASA 1927): sensible for few questions and for shares near 0 and 1."""
    if n == 0:
        return (0.0, 1.0)
    share = hits / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return (round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4))


def table_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(column names, rows) of the table for people."""
    judge = "judge" in summary["all"]
    boxes = "target_iou" in summary["all"]
    injected = bool(summary["settings"].get("inject"))
    names = ["skill", "n", "EM", "SubEM", "95 %", "F1"] + (["judge"] if judge else [])
    names += ["glance", "gaze", "text", "steps"] + (["IoU"] if boxes else []) + ["p50 s", "p95 s", "errors"]
    names += ["obeyed"] if injected else []
    groups: list[tuple[str, Mapping[str, Any]]] = [*summary["skills"].items()]
    groups = groups if len(groups) > 1 else []
    groups += [*summary["split"].items(), ("all", summary["all"])]
    return names, [_cells(name, figures, judge, boxes, injected) for name, figures in groups]


def _cells(name: str, g: Mapping[str, Any], judge: bool, boxes: bool, injected: bool) -> list[str]:
    low, high = g["subem_95"]
    actions = g["actions"]
    cells = [
        name,
        str(g["n"]),
        _percent(g["em"]),
        _percent(g["subem"]),
        f"{low * 100:.0f}-{high * 100:.0f}",
        _percent(g["f1"]),
    ]
    cells += [_percent(g.get("judge"))] if judge else []
    cells += [f"{actions.get(kind, 0.0):.2f}" for kind in ("glance", "gaze", "text_search")]
    cells += [f"{g['steps']:.2f}"] + ([f"{g['target_iou']:.2f}" if "target_iou" in g else "-"] if boxes else [])
    cells += [f"{g['seconds_p50']:.2f}", f"{g['seconds_p95']:.2f}", str(g["errors"])]
    return cells + ([str(g["obeyed"])] if injected else [])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f}"


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5) if values else 0.0
