"""The tables for a page: medians over several reports, goals with their ratios, shares of the limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gog_edge.bench.result import Cell, Report
from gog_edge.bench.summary import markdown, stages
from gog_edge.cli.main import cli


def report(*cells: Cell) -> Report:
    return Report("gog-edge-bench", "now", {"cpu": "test", "cores": 2}, {}, {}, cells)


def agent(subject: str, *seconds: float) -> Cell:
    return Cell("agent", subject, "total", "s", seconds)


FIRST = report(
    agent("gog-edge", 10.0, 12.0), agent("openvino-genai", 20.0, 20.0), agent("openvino-genai:sdpa", 16.0, 20.0)
)
SECOND = report(
    agent("gog-edge", 14.0),
    agent("llama.cpp", 28.0),
    Cell("decode", "gog-edge", "decode rate", "tok/s", (18.0,), lower_is_better=False, limit=20.0),
)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_reports_are_put_together_and_ratios_stay_within_theirs() -> None:
    text = markdown([FIRST, SECOND])
    measured = {r[0]: r[1:] for r in rows(text)[:5]}
    assert measured[""] == ["decode tok/s", "both s"]
    assert measured["gog-edge"] == ["18.0", "12.0"]  # the median of all three runs
    assert measured["llama.cpp"] == ["", "28.0"]
    goals = {(r[0], r[1]): r[2:] for r in rows(text)[5:]}
    # the better of the two modes is the one that counts: 0.6125, not 0.55
    assert goals["agent job", "openvino-genai:sdpa"] == ["≤ 0.65x", "**0.61x**", "0.60 to 0.62", "2"]
    assert goals["agent job", "llama.cpp"] == ["≤ 0.4x", "0.50x (missed)", "0.50 to 0.50", "1"]
    assert goals["decode, of the bandwidth limit", "the roofline of the same run"][1] == "**0.90x**"
    assert rows(stages([SECOND]))[1] == ["decode", "decode rate", "", "18 tok/s", "20 tok/s", "90%"]


def test_nothing_measured_gives_no_table() -> None:
    assert markdown([report()]).strip() == "" and stages([report()]) == ""


@pytest.mark.parametrize("option", [(), ("--markdown",)])
def test_show_prints_a_report_again(tmp_path: Path, option: tuple[str, ...]) -> None:
    path = tmp_path / "a.json"
    FIRST.save(path)
    done = CliRunner().invoke(cli, ["bench", "show", str(path), *option])
    assert done.exit_code == 0, done.output
    assert "openvino-genai:sdpa" in done.output
    assert json.loads(path.read_text())["format"] == "gog-edge-bench"
