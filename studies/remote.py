"""gog-nano's questions, answered here and by a policy on a server: the same answers, or where they part; and what a
split of the two would have answered.

    python -m studies.remote answers BUNDLE INDEX PICTURES --engine openai:URL --out remote.json
    python -m studies.remote compare local.json remote.json
    python -m studies.remote split int4.json remote.json

PICTURES is the folder that gog-nano's `recipe.evalset render` drew, INDEX one of its world that was built with BUNDLE.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.agent.split import SplitRule
from gog_edge.errors import GogEdgeError
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Answer, StopReason

QUESTIONS = Path(__file__).resolve().parents[1] / "models" / "gog-nano" / "eval" / "eval.jsonl"


def normal(text: str) -> str:
    """As gog-nano's recipe compares answers."""
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]|\b(the|a|an)\b", " ", text.casefold())).strip()


def questions(limit: int) -> list[dict[str, Any]]:
    """About `limit` questions, evenly over the skills; those whose first search is made to fail are left out."""
    lines = QUESTIONS.read_text("utf-8").splitlines()
    records = [r for r in map(json.loads, lines) if not r["fault"]]
    return records[:: max(1, len(records) // limit)][:limit] if limit else records


def answers(given: argparse.Namespace) -> None:
    """Ask, and write a row a question."""
    rows, began = [], time.monotonic()
    options = RunOptions(grammar="off", confidence=True)
    with gog_edge.load(given.bundle, engine=given.engine, index=given.index, options=options) as agent:
        for record in questions(given.limit):
            trace = Trace(record["question"])
            answer = agent.ask(str(given.pictures / record["image"]), record["question"], trace=trace)
            rows.append(
                {
                    "id": record["id"],
                    "skill": record["skill"],
                    "said": answer.text,
                    "stop": answer.stop.value,
                    "right": normal(answer.text) in [normal(a) for a in record["answers"]],
                    "turns": [step.turn.raw for step in answer.steps],
                    "tokens": answer.usage.generated_tokens,
                    "seconds": round(answer.seconds, 3),
                    "confidence": trace.meta.get("confidence"),
                    "notes": [text for _, text in trace.notes],
                }
            )
    given.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    right = sum(r["right"] for r in rows)
    print(f"{right} of {len(rows)} right, {time.monotonic() - began:.0f} s -> {given.out}")


def compare(given: argparse.Namespace) -> None:
    """How many answers and texts are the same, and where the others part."""
    one, other = (json.loads(path.read_text("utf-8")) for path in (given.one, given.other))
    by_id = {r["id"]: r for r in other}
    pairs = [(r, by_id[r["id"]]) for r in one if r["id"] in by_id]
    same = sum(a["said"] == b["said"] for a, b in pairs)
    text = sum(a["turns"] == b["turns"] for a, b in pairs)
    print(f"{len(pairs)} questions: {same} same answers, {text} with every turn the same, letter by letter")
    for a, b in pairs:
        if a["turns"] == b["turns"] and a["said"] == b["said"]:
            continue
        turn, x, y = next(
            ((n, x, y) for n, (x, y) in enumerate(zip_longest(a["turns"], b["turns"], fillvalue="")) if x != y),
            (0, a["said"], b["said"]),
        )
        at = next((i for i, (p, q) in enumerate(zip_longest(x, y)) if p != q), 0)
        print(f"{a['id']}: turn {turn}, character {at}: …{x[max(at - 20, 0) : at]!r} then {x[at : at + 20]!r}")
        print(f"{'':{len(a['id'])}}  the other: {y[at : at + 20]!r}; answers {a['said']!r} and {b['said']!r}")


def split(given: argparse.Namespace) -> None:
    """What `SplitAgent` would have answered, for thresholds between never and always."""
    here, there = (json.loads(path.read_text("utf-8")) for path in (given.one, given.other))
    by_id = {r["id"]: r for r in there}
    pairs = [(r, by_id[r["id"]]) for r in here if r["id"] in by_id]
    print("below | escalated | right")
    for below in (-99.0, -3.0, -2.0, -1.5, -1.0, -0.7, -0.5, -0.3, -0.2, -0.1, -0.05, -0.01, 0.0):
        rule = SplitRule(below)
        asked = [
            bool(rule.doubt(Answer(a["said"], StopReason(a["stop"])), (a["confidence"] or {}).get("least")))
            for a, _ in pairs
        ]
        right = sum(b["right"] if up else a["right"] for up, (a, b) in zip(asked, pairs))
        print(f"{below:5} | {sum(asked):3} of {len(pairs)} | {right}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    ask = commands.add_parser("answers", help="ask the questions")
    ask.add_argument("bundle", type=Path)
    ask.add_argument("index", type=Path)
    ask.add_argument("pictures", type=Path)
    ask.add_argument("--engine", help="openai:URL; default: the bundle's own")
    ask.add_argument("--limit", type=int, default=100)
    ask.add_argument("--out", type=Path, required=True)
    ask.set_defaults(run=answers)
    both = commands.add_parser("compare", help="compare two runs")
    both.add_argument("one", type=Path)
    both.add_argument("other", type=Path)
    both.set_defaults(run=compare)
    simulated = commands.add_parser("split", help="simulate a split of two runs")
    simulated.add_argument("one", type=Path)
    simulated.add_argument("other", type=Path)
    simulated.set_defaults(run=split)
    given = parser.parse_args()
    try:
        given.run(given)
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
