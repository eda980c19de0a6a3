"""The study of the gated delta rule, on few tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies import delta_rule
from tests.native.graphs import needs_ops
from tests.versions import need_hybrid


@needs_ops
def test_both_operators_agree_and_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_hybrid("ort")
    monkeypatch.setattr(delta_rule, "_STATES_BYTES", 8 << 20)
    out = tmp_path / "d.json"
    assert delta_rule.main(["--rounds", "2", "--tokens", "70", "-o", str(out)]) == 0
    made = json.loads(out.read_text())
    assert [(row["tokens"], row["value_heads"]) for row in made["rows"][::3]] == [(70, 16), (70, 32), (1, 16), (1, 32)]
    assert [row["subject"] for row in made["rows"][:3]] == ["LinearAttention", "ours", "ours, norm"]
    assert all(row["cpu_ms"] > 0 for row in made["rows"])
    assert [step["bytes"] for step in made["steps"]] == [1572864, 2883584] and made["steps"][0]["share"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 15


@needs_ops
def test_different_results_end_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(delta_rule, "theirs", lambda job: delta_rule.ours(_doubled(job), norm=False))
    assert delta_rule.main(["--rounds", "1", "--tokens", "3"]) == 2
    assert "different results" in capsys.readouterr().err


def _doubled(job: delta_rule.Job) -> delta_rule.Job:
    return delta_rule.Job(job.q, job.k, 2 * job.v, job.g, job.beta)
