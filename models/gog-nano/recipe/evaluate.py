"""Answers the evaluation set with an exported bundle, through the runtime's own agent, and counts.

``python -m recipe.evaluate --bundle B --index I --images DIR --out report.json``. Greedy, without grammar unless asked
for. Questions with a ``fault`` get an empty or failing first search: that is the reflection skill.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import gog_edge
from gog_edge.agent.embedder import open_embedder
from gog_edge.agent.options import NO_PREFETCH, RunOptions
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import SearchError
from gog_edge.search.base import BaseProvider, Deadline, ImageQuery
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.provider import LocalProvider
from gog_edge.types import ActionKind, Answer, Hit

from . import evalset, geometry

SEARCHES = (ActionKind.GLANCE, ActionKind.GAZE, ActionKind.TEXT_SEARCH)


class Bench(BaseProvider):
    """The local index with a fault for the first search of a kind, and without gaze if asked."""

    def __init__(self, inner: LocalProvider, whole: bool) -> None:
        self.inner, self.whole, self.fault = inner, whole, ""
        self.name, self.kinds = inner.name, inner.kinds

    def _fails(self, kind: str) -> bool:
        if self.fault != kind:
            return False
        self.fault = ""
        return True

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        if self._fails("text"):
            raise SearchError("injected fault")
        return self.inner.search_text(query, k=k, deadline=deadline)

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        if self._fails("image"):
            return []
        if self.whole:
            query = ImageQuery(query.frame, None, "", query.url, query.key)
        return self.inner.search_image(query, k=k, deadline=deadline)


def normal(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]|\b(the|a|an)\b", " ", text.casefold())).strip()


def judge(record: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """What happened with one question."""
    gazes = [a.region for s in answer.steps for a in s.turn.actions if a.kind is ActionKind.GAZE and a.region]
    actions = [a for s in answer.steps for a in s.turn.actions]
    hits = []
    for region in gazes:
        box = (region.x0, region.y0, region.x1, region.y1)
        hits.append(any(geometry.is_hit(box, tuple(target)) for target in record["target_boxes"]))
    return {
        "id": record["id"],
        "skill": record["skill"],
        "held_out": record["held_out"],
        "said": answer.text,
        "answers": record["answers"],
        "right": normal(answer.text) in [normal(a) for a in record["answers"]],
        "stop": answer.stop.value,
        "gazes": len(hits),
        "gaze_hits": sum(hits),
        "actions": len(actions),
        "invalid": sum(a.kind is ActionKind.INVALID for a in actions),
        "searches": sum(a.kind in SEARCHES for a in actions),
        "tokens": answer.usage.generated_tokens,
        "seconds": round(answer.seconds, 3),
        "turns": [s.turn.raw for s in answer.steps],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all questions and a table a skill."""

    def share(part: list[dict[str, Any]]) -> float | None:
        return round(sum(r["right"] for r in part) / len(part), 4) if part else None

    skills = defaultdict(list)
    for row in rows:
        skills[row["skill"]].append(row)
    total = {
        k: sum(r[k] for r in rows)
        for k in ("gazes", "gaze_hits", "actions", "invalid", "searches", "tokens", "seconds")
    }
    return {
        "questions": len(rows),
        "right": share(rows),
        "right_held_out": share([r for r in rows if r["held_out"]]),
        "right_seen": share([r for r in rows if not r["held_out"]]),
        "gaze_hits": round(total["gaze_hits"] / max(1, total["gazes"]), 4),
        "valid_actions": round(1 - total["invalid"] / max(1, total["actions"]), 4),
        "searches_per_question": round(total["searches"] / len(rows), 2),
        "tokens_per_question": round(total["tokens"] / len(rows), 1),
        "seconds_per_question": round(total["seconds"] / len(rows), 3),
        "skills": {
            name: {
                "n": len(part),
                "right": share(part),
                "held_out": share([r for r in part if r["held_out"]]),
                "gaze_hits": round(sum(r["gaze_hits"] for r in part) / max(1, sum(r["gazes"] for r in part)), 4),
            }
            for name, part in skills.items()
        },
    }


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    records = evalset.load(options.questions)
    if options.limit:  # the same share of every skill
        records = records[:: max(1, len(records) // options.limit)]
    index = LocalIndex(options.index)
    inner = LocalProvider(index, open_embedder(bundle=options.bundle, fingerprint=index.encoder))
    bench = Bench(inner, options.no_gaze)
    run = RunOptions(grammar="on" if options.grammar else "off", prefetch=NO_PREFETCH)
    rows, began = [], time.time()
    with gog_edge.load(
        options.bundle,
        engine=options.engine,
        providers=[bench],
        options=run,
        engine_options=OrtOptions(threads=options.threads),
    ) as agent:
        for record in records:
            bench.fault = record["fault"]
            rows.append(judge(record, agent.ask(str(options.images / record["image"]), record["question"])))
    report = {
        **summary(rows),
        "gaze": not options.no_gaze,
        "grammar": options.grammar,
        "wall": round(time.time() - began, 1),
    }
    if options.out:
        options.out.write_text(
            json.dumps({**report, "rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--index",
        type=Path,
        required=True,
        help="built with this bundle: gog-edge index build --bundle … --max-pixels 16384",
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="where `recipe.evalset render --out` drew the pictures"
    )
    parser.add_argument("--questions", type=Path, default=evalset.EVAL / "eval.jsonl")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="about so many questions, evenly over the skills")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--engine", help="transformers:CHECKPOINT answers with the checkpoint itself")
    parser.add_argument("--no-gaze", action="store_true", help="every gaze searches with the whole image")
    parser.add_argument("--grammar", action="store_true")
    print(json.dumps(evaluate(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
