"""The tables for a page: medians over several reports, goals with their ratios, shares of the limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.report import plots
from gog_edge.bench.report.html import page
from gog_edge.bench.report.summary import markdown, stages
from gog_edge.bench.result import Cell, Report, one_of_each
from gog_edge.bench.suite import BESIDE
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
    Cell("decode", "gog-edge", BESIDE, "%", (91.0, 92.0), lower_is_better=False, limit=100.0),
)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_reports_are_put_together_and_ratios_stay_within_theirs() -> None:
    text = markdown([FIRST, SECOND])
    measured = {r[0]: r[1:] for r in rows(text)[:5]}
    assert measured[""] == ["decode tok/s", "both s"]
    assert measured["gog-edge"] == ["18.0", "11.0"]  # of the report with two runs of it, not of all three
    assert measured["llama.cpp"] == ["", "28.0"]
    goals = {(r[0], r[1]): r[2:] for r in rows(text)[5:]}
    # the better of the two modes is the one that counts: 0.6125, not 0.55
    assert goals["agent job", "openvino-genai:sdpa"] == ["≤ 0.65x", "**0.61x**", "0.60 to 0.62", "2"]
    assert goals["agent job", "llama.cpp"] == ["≤ 0.4x", "0.50x (missed)", "0.50 to 0.50", "1"]
    assert goals["decode, of the bandwidth", "limit right beside each run"][1:] == ["**0.92x**", "0.91 to 0.92", "2"]
    assert rows(stages([SECOND]))[1] == ["decode", "decode rate", "", "18 tok/s", "20 tok/s", "90%"]


def test_a_turn_is_held_against_its_own_stages_run_by_run() -> None:
    names = ("crop", "encode", "prefill", "decode")
    cells = [Cell("agent", "gog-edge", f"turn 2 {name}", "s", (0.5, 1.0)) for name in names]
    whole = Cell("agent", "gog-edge", "turn 2 total", "s", (2.1, 4.1))
    (_, row) = rows(markdown([report(*cells, whole)]).split("\n\n")[-1])
    assert row[0] == "turn 2" and row[2:] == ["≤ 1.1x", "**1.04x**", "1.02 to 1.05", "2"]
    assert "≤ 1.1x" not in markdown([report(*cells[1:], whole)])


def test_a_goal_in_seconds() -> None:
    loads = report(Cell("load", "gog-edge", "warm load to first token", "s", (0.2, 0.4, 0.1)))
    (_, row) = rows(markdown([loads]).split("\n\n")[-1])
    assert row == ["warm load to the first token", "", "≤ 1.5 s", "**0.20 s**", "0.10 to 0.40", "3"]


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


def test_the_page_of_several_reports_keeps_ratios_within_each() -> None:
    pytest.importorskip("matplotlib")
    stages_of = [
        Cell("agent", s, f"turn 1 {stage}", "s", (seconds,) * 3, limit=1.0 if s == "gog-edge" else None)
        for s in ("gog-edge", "llama.cpp")
        for stage, seconds in (("encode", 2.0), ("prefill", 1.0), ("decode", 3.0), ("total", 7.0))
        if (s, stage) not in (("llama.cpp", "encode"), ("llama.cpp", "prefill"))
    ]
    text = page([FIRST, report(*stages_of, *SECOND.cells)])
    # 10/20 and 12/20 of the first report, 14/28 of the second: three runs of ours were never divided by two of theirs
    assert '"0.50 to 0.60 in 2 runs">0.55x' in text and '"0.50 to 0.50 in 1 run">0.50x' in text
    assert "where the time goes" in text and "how near to the machine" in text
    assert text.count("<svg") >= 4


def test_the_page_holds_decoding_against_the_bandwidth_beside_it_and_ourselves_are_no_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    shown: list[str] = []
    monkeypatch.setattr(plots, "shares", lambda cells: shown.extend(c.stage for c in cells) or "")
    ours = [
        Cell("agent", "gog-edge", "turn 1 encode", "s", (2.0,), limit=1.0),
        Cell("agent", "gog-edge", "turn 1 decode", "s", (2.0,), limit=1.0),
        Cell("agent", "gog-edge", "turn 1 total", "s", (4.0,), limit=2.0),
        Cell("agent", "gog-edge", f"turn 1 {BESIDE}", "%", (90.0,), lower_is_better=False, limit=100.0),
        Cell("agent", "gog-edge", "turn 2 decode", "s", (2.0,), limit=1.0),  # an older report: no bandwidth beside it
        Cell("crop", "gog-edge", "crop", "s", (2e-3,)),
    ]
    text = page([report(*ours, Cell("crop", "gog-edge 2 threads", "crop", "s", (1e-3,)))])
    assert shown == ["turn 1 encode", f"turn 1 {BESIDE}", "turn 2 decode"]
    assert 'class=soft title="2.00 to 2.00 in 1 run">2.00x' in text and "<td class=worse" not in text


def test_what_several_reports_measured_comes_from_the_one_with_most_runs() -> None:
    def run(n: int, limit: float) -> Report:
        stages = (("encode", 4.0), ("prefill", 2.0))
        return report(*(Cell("encode", "gog-edge", s, "s", (x + limit,) * n, limit=limit) for s, x in stages))

    curve = report(Cell("growth", "gog-edge", "encode", "s", (9.0,), x=2.0))
    peer = report(Cell("encode", "peer", "encode", "s", (8.0,)))
    found = one_of_each([peer, run(1, 0.5), run(2, 1.0), run(2, 2.0), curve])
    assert [(c.subject, c.stage, c.x, c.limit, c.samples) for c in found] == [
        ("gog-edge", "encode", None, 1.0, (5.0, 5.0)),
        ("gog-edge", "prefill", None, 1.0, (3.0, 3.0)),
        ("gog-edge", "encode", 2.0, None, (9.0,)),
        ("peer", "encode", None, None, (8.0,)),
    ]


def test_limits_before_and_after_a_run_are_put_together() -> None:
    assert Roofline(2, 20.0, {"a": 1.0, "b": 5.0}).best(Roofline(2, 30.0, {"b": 4.0})) == Roofline(
        2, 30.0, {"a": 1.0, "b": 5.0}
    )


def test_a_gate_is_shut_by_what_is_ours_only(tmp_path: Path) -> None:
    before, peer_slower, ours_slower = (tmp_path / f"{n}.json" for n in "abc")
    report(agent("gog-edge", 10.0), agent("llama.cpp", 20.0)).save(before)
    report(agent("gog-edge", 10.0), agent("llama.cpp", 40.0)).save(peer_slower)
    report(agent("gog-edge", 20.0)).save(ours_slower)
    run = CliRunner().invoke
    assert run(cli, ["bench", "diff", str(before), str(peer_slower)]).exit_code == 0
    assert run(cli, ["bench", "diff", str(before), str(peer_slower), "--peers"]).exit_code == 1
    assert run(cli, ["bench", "diff", str(before), str(ours_slower)]).exit_code == 1


def test_a_budget_takes_the_limits_of_a_report(tmp_path: Path) -> None:
    limited, none = tmp_path / "limited.json", tmp_path / "none.json"
    roofline = {"threads": 2, "read_gbs": 50.0, "gemm": {"int8": 800.0}}
    Report("gog-edge-bench", "now", {"cpu": "test"}, roofline, {}, (agent("gog-edge", 1.0),)).save(limited)
    report(agent("gog-edge", 1.0)).save(none)
    run = CliRunner().invoke
    done = run(cli, ["bench", "budget", "--deadline", "20s", "--limits", str(limited)])
    assert done.exit_code == 0 and "768 tokens" in done.output
    assert run(cli, ["bench", "budget", "--deadline", "20s", "--limits", str(none)]).exit_code != 0
