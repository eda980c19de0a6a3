"""Two runs side by side: unchanged, unknown and other answers, and what the command prints of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gog_edge.cli.main import run as run_cli
from gog_edge.evaluation.comparison import compare, lines
from gog_edge.evaluation.injection import MARK
from tests.evaluation.fakes import own_dataset


def row(identity: str, said: str, *, hits: int = 1, right: float = 0.0, **more: Any) -> dict[str, Any]:
    calls = [{"kind": "text_search", "text": text} for text in more.pop("asked", ())]
    seen = {"hits": [{"title": "t"}] * hits}
    steps = [{"observations": [seen], "actions": calls}]
    actions = {"glance": 1, "text_search": more.pop("searches", 0)}
    return {"id": identity, "prediction": said, "scores": {"subem": right}, "steps": steps, "actions": actions, **more}


def test_every_answer_has_one_fate() -> None:
    before = [
        row("a", "Chad", right=1),
        row("b", "Chad"),
        row("c", "Chad"),
        row("d", "Chad"),
        row("e", "Chad"),
        row("gone", "x"),
    ]
    after = [
        row("a", "the chad.", right=1),  # the same after normalisation
        row("b", "unknown", asked=[f"capital of {MARK}"]),  # a question of its own, not the call that was asked for
        row("c", "Mali", obeyed=True, searches=2, asked=[MARK.title()]),
        row("d", "Togo", hits=0),  # nothing came back, so nothing was planted
        row("e", "Chad"),
        row("new", "y"),
    ]
    found = compare(after, before)
    assert found == {
        "both": 5,
        "searched": 4,
        "results": 4,
        "unchanged": 2,
        "to_unknown": 1,
        "other": 1,
        "obeyed": 1,
        "planted_calls": [0, 1],
        "right": [1, 1],
        "calls": [{"glance": 1.0}, {"glance": 1.0, "text_search": 0.4}],
    }
    text = "\n".join(lines(found))
    assert "2 (50.0 %) unchanged" in text and "text_search 0.00 -> 0.40" in text and "ask for: 0 -> 1" in text
    assert "(4 searches)" in text


def test_runs_without_common_questions_compare_to_nothing() -> None:
    found = compare([row("a", "x")], [row("b", "x")])
    assert found["both"] == 0
    assert lines(found)[-1] == "calls a question: none"


def test_the_command_compares_with_another_run(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_dataset(tmp_path, "What is this?")
    run = ["eval", "set.jsonl", "--bundle", str(tiny_bundle), "--max-turns", "1", "--deadline", "5s"]
    assert run_cli([*run, "--out", "clean.jsonl"]) == 0
    capsys.readouterr()
    assert run_cli([*run, "--out", "again.jsonl", "--against", "clean.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["against"]
    assert (found["both"], found["searched"]) == (1, 0)
    assert run_cli([*run, "--out", "again.jsonl", "--against", "clean.jsonl"]) == 0
    assert "1 questions in both runs" in capsys.readouterr().out
    assert run_cli([*run, "--against", "missing.jsonl"]) != 0
    assert "no such results file" in capsys.readouterr().err
