"""Evaluation reports as tables (``eval/report.md``) and a gallery of failures (``eval/failures.png``).

``python -m recipe.report --images DIR fp32=a.json int8=b.json no-gaze=c.json``: the first report is the main one.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from . import causes, evalset, scenes

EVAL = evalset.EVAL
COLUMNS = (
    ("right", "answers right"),
    ("right_held_out", "held-out countries"),
    ("gaze_hits", "gaze hits"),
    ("valid_actions", "valid actions"),
    ("searches_per_question", "searches"),
    ("tokens_per_question", "tokens"),
    ("seconds_per_question", "seconds"),
)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def cell(key: str, value: float | None) -> str:
    return percent(value) if key in ("right", "right_held_out", "gaze_hits", "valid_actions") else f"{value}"


def tables(reports: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| run | questions | " + " | ".join(title for _, title in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, report in reports.items():
        cells = " | ".join(cell(key, report[key]) for key, _ in COLUMNS)
        lines.append(f"| {name} | {report['questions']} | {cells} |")
    main = next(iter(reports.values()))
    lines += ["", "| skill | n | answers right | held-out | gaze hits |", "|---|---|---|---|---|"]
    for skill, row in main["skills"].items():
        gaze = percent(row["gaze_hits"]) if any(r["gazes"] for r in main["rows"] if r["skill"] == skill) else ""
        lines.append(f"| {skill} | {row['n']} | {percent(row['right'])} | {percent(row['held_out'])} | {gaze} |")
    lines += ["", "| first step that went wrong | questions |", "|---|---|"]
    lines += [f"| {name} | {times} |" for name, times in causes.count(main).most_common()]
    return "\n".join(lines) + "\n"


def gallery(report: dict[str, Any], images: Path, out: Path, count: int = 6) -> None:
    """Pictures of wrong answers: targets green, the policy's boxes red, question and answers below."""
    records = {r["id"]: r for r in evalset.load()}
    wrong = [r for r in report["rows"] if not r["right"]]
    chosen = [r for i, r in enumerate(wrong) if r["skill"] not in {w["skill"] for w in wrong[:i]}][:count]
    chosen += [r for r in wrong if r not in chosen][: count - len(chosen)]
    if not chosen:
        return
    w, h, text_h = 480, 360, 96
    sheet = Image.new("RGB", (3 * w, -(-len(chosen) // 3) * (h + text_h)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for number, row in enumerate(chosen):
        record = records[row["id"]]
        with Image.open(images / record["image"]) as opened:
            picture = opened.convert("RGB")
        brush = ImageDraw.Draw(picture)
        for box in record["target_boxes"]:
            brush.rectangle(box, outline=(0, 200, 0), width=8)
        for turn in row["turns"]:
            for found in re.findall(r'"bbox_2d": \[([\d, ]+)\]', turn):
                edges = [float(v) for v in found.split(",")]
                if len(edges) != 4 or edges[0] >= edges[2] or edges[1] >= edges[3]:
                    continue  # no box: the action was invalid
                scale = (scenes.WIDTH / 1000, scenes.HEIGHT / 1000) * 2
                brush.rectangle([e * s for e, s in zip(edges, scale, strict=True)], outline=(230, 0, 0), width=5)
        x, y = number % 3 * w, number // 3 * (h + text_h)
        sheet.paste(picture.resize((w, h)), (x, y))
        words = f"[{row['skill']}] {record['question']}  right: {row['answers'][0]}  said: {row['said'] or '(nothing)'}"
        draw.text((x + 6, y + h + 4), "\n".join(textwrap.wrap(words, 66)[:5]), fill="black", font=font)
    sheet.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", help="name=report.json")
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    reports = {}
    for argument in options.reports:
        name, path = argument.split("=", 1)
        reports[name] = json.loads(Path(path).read_text(encoding="utf-8"))
    (EVAL / "report.md").write_text(tables(reports), encoding="utf-8")
    gallery(next(iter(reports.values())), options.images, EVAL / "failures.png")
    print(tables(reports))


if __name__ == "__main__":
    main()
