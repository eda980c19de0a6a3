"""The kernel benchmark: every case runs, and every kind of arithmetic has a peak."""

from __future__ import annotations

import json

import pytest

from studies import kernel_cases
from studies.kernels import main
from tests.native.graphs import needs_ops

pytestmark = needs_ops


def test_peaks_and_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--threads", "1", "--seconds", "0", "--only", "decode attention", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in report["rows"]] == ["decode attention f16", "decode attention int8"]
    assert all(row["rate"] > 0 and row["runs"] >= 3 for row in report["rows"])
    assert set(report["peak_gflops"]) == {"f32", "bf16", "int8"}
    assert all(rate > 0 for rate in report["peak_gflops"].values())


def test_names_are_unique_and_rates_have_a_ceiling() -> None:
    cases = kernel_cases.cases()
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.flops > 0 and case.precision in ("f32", "bf16", "int8") for case in cases)
