"""``log/*.txt`` (one ``key=value,…`` line a measurement) as CSV files and one picture of curves."""

from __future__ import annotations

import csv
from pathlib import Path

LOG = Path(__file__).resolve().parent / "log"
PANELS = {
    "vision": ("kind", "x0", "rank", "v-rank", "recall", "held_r1"),
    "text": ("loss", "right"),
    "joint": ("loss", "right", "hard", "seeing", "cells", "cell-rank"),
}
PARTS = {
    "vision": ("vision", "vision-b", "vision-c"),
    "joint": (
        "joint-a",
        "joint-b",
        "joint-c",
        "joint-frozen",
        "joint-e",
        "joint-f",
        "joint-g",
        "joint-h",
        "joint-i",
        "joint-j",
        "joint-k",
        "joint-l",
        "joint-m",
        "joint-n",
        "joint-o",
        "joint-p",
        "joint-q",
        "joint-r",
    ),
}


def read(path: Path) -> list[dict[str, float]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        rows.append({k: float(v) for k, v in (part.split("=") for part in line.split(","))})
    return rows


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(15, 4))
    for axis, (phase, keys) in zip(axes, PANELS.items(), strict=True):
        rows, offset = [], 0.0
        for path in (LOG / f"{part}.txt" for part in PARTS.get(phase, (phase,))):
            part = read(path) if path.exists() else []
            rows += [{**row, "step": row["step"] + offset} for row in part]
            offset = rows[-1]["step"] if rows else 0.0
        columns = list(dict.fromkeys(k for row in rows for k in row))
        with (LOG / f"{phase}.csv").open("w", newline="", encoding="utf-8") as sink:
            writer = csv.DictWriter(sink, columns)
            writer.writeheader()
            writer.writerows(rows)
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), label=key)
        axis.set_title(phase)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1.5)
        axis.legend()
    figure.tight_layout()
    figure.savefig(LOG / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
