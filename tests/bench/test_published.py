"""What docs/benchmarks says is what its JSON files hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gog_edge.bench.report.summary import markdown, stages
from gog_edge.bench.result import load

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
PAGE = (FOLDER / "README.md").read_text("utf-8")
SHAPES = {"2B": "qwen3-vl-2b", "3B": "qwen2.5-vl-3b"}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("folder", SHAPES.values())
def test_tables_are_those_that_show_prints(folder: str) -> None:
    reports = [load(path) for path in sorted((FOLDER / folder).glob("*.json"))]
    measured = markdown(reports).split("\n\n")[0]
    assert measured in PAGE
    mine = PAGE.split(f"[{folder}/]({folder})")[1].split("\n## ")[0]
    shown = [line for line in mine.splitlines() if re.match(r"\| (agent|encode|decode) \|", line)]
    assert len(shown) > 8 and set(shown) <= set(stages(reports).splitlines())


def test_the_table_of_goals_holds_the_ratios_of_the_files() -> None:
    lines = PAGE.split("## Goals")[1].split("\n## ")[0].splitlines()
    table = [cells(line) for line in lines if line.startswith("|")]
    assert table[0][2:4] == list(SHAPES) and len(table) > 12
    for column, folder in enumerate(SHAPES.values(), 2):
        reports = [load(path) for path in sorted((FOLDER / folder).glob("*.json"))]
        goals = [cells(line) for line in markdown(reports).split("\n\n")[1].splitlines()[2:]]
        ratios = {re.sub(r"[*]", "", row[3]).removesuffix(" (missed)") for row in goals}
        memory = next(float(row[3].strip("*x")) for row in goals if row[0].startswith("weights"))
        for row in table[2:]:
            said = re.match(r"[*]*([\d.]+)( s| %|x)", row[column])
            if said is None:
                assert row[column] == "-"
                continue
            number, unit = float(said[1]), said[2]
            if unit == " %":
                assert f"{number / 100:.2f}x" in ratios
            elif row[0].startswith("peak memory"):
                assert number == pytest.approx(1 / memory, abs=0.01)
            else:
                assert f"{number:.2f}{unit}" in ratios, row


def test_every_file_that_is_named_is_there_and_clean_runs_are_said_to_be() -> None:
    for path in re.findall(r"\]\(((?:camera|qwen)[^)#]*\.(?:json|html))\)", PAGE):
        assert (FOLDER / path).is_file(), path
    named = [path for path in FOLDER.rglob("*.json") if "-dirty" in str(load_git(path))]
    for path in named:
        assert path.name in PAGE, f"{path} is from a tree with changes: the page has to say so"


def load_git(path: Path) -> object:
    try:
        return load(path).machine.get("git")
    except ValueError:  # a file of another form
        return None
