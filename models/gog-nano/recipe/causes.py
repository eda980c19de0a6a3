"""Why answers are wrong: the first step of each conversation that is not the teacher's.

``python -m recipe.causes REPORT.json --questions DIR/eval.jsonl`` counts the causes of a report of ``evaluate.py`` and, with
``--show CAUSE``, prints such conversations. Every change of the wording after the second run was chosen by these counts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import evalset, geometry, scenes, world
from .questions import Question, box_of

NEAR = 2 * geometry.STEP  # a side of a listed box may be off by this much
LINE = re.compile(r"\d: (\w+) (\w+) ([a-z]+)\d? \[(\d+), (\d+), (\d+), (\d+)\]")


def cause(record: dict[str, Any], row: dict[str, Any]) -> str:
    """The first cause of a wrong answer; ``record`` of the question set, ``row`` of the report."""
    scene, question, _, _ = evalset.asked(record)
    if scene.type == scenes.CLUTTERED and (found := _reading(scene, question, row["turns"][0])):
        return found
    if row["stop"] != "answered":
        return f"ended by {row['stop']}"
    said = " ".join(row["turns"])
    keys = [scene.items[t].entity for t in question.targets]
    if any(k.startswith("made-") for k in keys):
        return "search: a made-up flag was taken for a real one"
    if "Low score" in said or "No result" in said:
        return "search: the right flag was refused"
    truth = [world.entity(k) for k in keys]
    if any(e.name not in said for e in truth):
        return "search: another flag came first, or its name was copied wrongly"
    if question.rule in ("name", "hint"):
        return "answer: not the name that was found"
    queries = re.findall(r'"query": "([^"]*)"', said)
    if any(not any(e.name in q and question.attribute in q for q in queries) for e in truth):
        return "fact: asked for something else"
    if any(str(e.facts[question.attribute]) not in said for e in truth):
        return "fact: copied wrongly"
    return "answer: drawn wrongly from right facts"


def _reading(scene: scenes.Scene, question: Question, turn: str) -> str:
    """What is wrong with the list or the target of the first turn; '' if nothing is."""
    listed = [m.groups() for m in LINE.finditer(turn.split("Target")[0])]
    if len(listed) != len(scene.items):
        return "list: a flag too many or too few"
    for item, (size, colour, kind, *box) in zip(scene.items, listed, strict=True):
        if any(abs(int(a) - b) > NEAR for a, b in zip(box, box_of(item), strict=True)):
            return "list: a box is off"
        if (colour, kind) != (item.colour, item.kind):
            return "list: another colour or carrier"
        if size != item.size and re.search("largest|smallest", question.text):
            return "list: another size"
    if question.rule in ("direct", "absent"):
        return "answer: not what the list says"
    clues = re.search(r"Target(.*)\.", turn)
    told = [re.findall(r"\d", part)[-1:] for part in clues[1].split(" and ")] if clues else []
    if told != [[str(t + 1)] for t in question.targets]:
        return "target: another flag"
    return ""


def wrong(report: dict[str, Any], questions: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Record, row and cause of every wrong answer of a report, in the order of the question set."""
    rows = {row["id"]: row for row in report["rows"] if not row["right"]}
    for record in evalset.load(questions):
        if row := rows.get(record["id"]):
            yield record, row, cause(record, row)


def count(report: dict[str, Any], questions: Path = evalset.EVAL / "eval.jsonl") -> Counter[str]:
    """Causes of the wrong answers of a report, and how often."""
    return Counter(why for _, _, why in wrong(report, questions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--questions", type=Path, default=evalset.EVAL / "eval.jsonl")
    parser.add_argument("--show", default="", help="print the conversations of the causes that contain this")
    options = parser.parse_args()
    report = json.loads(options.report.read_text(encoding="utf-8"))
    found = list(wrong(report, options.questions))
    for name, times in Counter(why for _, _, why in found).most_common():
        print(f"{times:4d}  {name}")
    for record, row, why in found if options.show else ():
        if options.show in why:
            print(f"\n{record['id']} ({why}): {record['question']}\n  wanted {record['answers']}, said {row['said']!r}")
            print("\n".join(f"  {turn}" for turn in row["turns"]))


if __name__ == "__main__":
    main()
