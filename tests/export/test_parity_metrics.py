"""Metrics, tolerances and verdicts of the parity gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gog_edge.errors import ParityError
from gog_edge.export.parity.metrics import (
    Stage,
    Tolerances,
    Verdict,
    combine,
    compare_features,
    compare_greedy,
    compare_logits,
    worst,
)

RNG = np.random.default_rng(1)


def _rows(n: int = 70, d: int = 33) -> np.ndarray:
    return RNG.standard_normal((n, d)).astype(np.float32)


def test_equal_is_equal() -> None:
    x = _rows()
    features = compare_features(x, x)
    assert features["cosine_min"] == pytest.approx(1)
    assert features["relative_error"] == features["max_abs_error"] == 0
    logits = compare_logits(x, x + 5)  # a constant means nothing to a softmax
    assert logits["kl_max"] == pytest.approx(0, abs=1e-9)
    assert logits["relative_error"] < 1e-6
    assert logits["top1_agreement"] == 1
    assert logits["rows"] == 70


def test_features_find_one_bad_row() -> None:
    x = _rows()
    y = x.copy()
    y[17] *= -1
    assert compare_features(x, y)["cosine_min"] == pytest.approx(-1)
    assert compare_features(x, y)["cosine_mean"] > 0.95
    zero = np.zeros((2, 3), np.float32)
    assert compare_features(zero, zero)["cosine_min"] == 1
    assert compare_features(zero, zero + 1)["cosine_min"] == 0


def test_kl_is_that_of_the_definition() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    expected = float((p * np.log(p / q)).sum())
    got = compare_logits(np.log(p)[None].astype(np.float32), np.log(q)[None].astype(np.float32))
    assert got["kl_mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("function", [compare_features, compare_logits])
def test_what_can_not_be_compared(function) -> None:  # type: ignore[no-untyped-def]
    x = _rows(3, 4)
    with pytest.raises(ParityError, match=r"\[3, 4\]"):
        function(x, x[:2])
    for bad in (np.nan, np.inf):
        y = x.copy()
        y[1, 1] = bad
        with pytest.raises(ParityError, match="bundle gives values that are not finite"):
            function(x, y)
        with pytest.raises(ParityError, match="reference model gives"):
            function(y, x)


def test_greedy_tells_ties_from_mismatches() -> None:
    reference = np.zeros((4, 5), np.float32)
    reference[:, 0] = [10, 10, 10, 10]
    reference[:, 1] = [0, 9.999, 5, 0]
    reference[:, 4] = 99  # not allowed
    result = compare_greedy(reference, np.array([0, 1, 1, 0]), tie=1e-3, masked=[4])
    assert result["near_ties"] == 1
    assert result["mismatches"] == 1
    assert result["first_difference"] == 1
    assert result["agreement"] == 0.75
    assert result["exact_agreement"] == 0.5
    assert result["largest_margin"] == pytest.approx(5)
    with pytest.raises(ParityError, match="4 rows"):
        compare_greedy(reference, np.array([0, 1]), tie=0.1)
    reference[0, 0] = np.nan
    with pytest.raises(ParityError, match="not finite"):
        compare_greedy(reference, np.array([0, 1, 1, 0]), tie=0.1)


def test_worst_of_several() -> None:
    assert worst([{"cosine_min": 0.9, "relative_error": 0.1}, {"cosine_min": 0.8, "relative_error": 0.2}]) == {
        "cosine_min": 0.8,
        "relative_error": 0.2,
    }
    assert worst([]) == {}


TOML = """
[x.prefill]
at_least = { top1_agreement = 0.9 }
at_most = { kl_mean = 0.1 }
[x.greedy]
tie = 0.5
at_most = { mismatches = 0.0 }
"""


@pytest.fixture
def tolerances(tmp_path: Path) -> Tolerances:
    (tmp_path / "t.toml").write_text(TOML)
    return Tolerances.load("x", tmp_path / "t.toml")


def test_judging(tolerances: Tolerances) -> None:
    good = tolerances.judge("prefill", {"top1_agreement": 0.9, "kl_mean": 0.1})
    assert good.verdict is Verdict.PASS
    assert good.complaint() == ""
    bad = tolerances.judge("prefill", {"top1_agreement": 0.5, "kl_mean": 0.2})
    assert bad.verdict is Verdict.FAIL
    assert bad.complaint() == "top1_agreement 0.5 < 0.9, kl_mean 0.2 > 0.1"
    nan = tolerances.judge("prefill", {"top1_agreement": 1.0, "kl_mean": float("nan")})
    assert nan.verdict is Verdict.FAIL
    assert tolerances.judge("greedy", {"mismatches": 0.0, "near_ties": 1.0}).verdict is Verdict.AMBIGUOUS
    assert tolerances.judge("greedy", {"mismatches": 1.0, "near_ties": 1.0}).verdict is Verdict.FAIL
    assert tolerances.value("greedy", "tie") == 0.5
    with pytest.raises(ParityError, match="no tolerances for stage"):
        tolerances.judge("nowhere", {})
    with pytest.raises(ParityError, match="not measured"):
        tolerances.judge("prefill", {"kl_mean": 0.0})


def test_combining() -> None:
    def stage(verdict: Verdict) -> Stage:
        return Stage("s", verdict, {})

    ok, maybe, bad = stage(Verdict.PASS), stage(Verdict.AMBIGUOUS), stage(Verdict.FAIL)
    assert combine([ok, ok]) is Verdict.PASS
    assert combine([ok, maybe]) is Verdict.AMBIGUOUS
    assert combine([maybe, bad, ok]) is Verdict.FAIL


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_shipped_tolerances_cover_every_stage(precision: str) -> None:
    shipped = Tolerances.load(precision)
    stages = {"pixels", "vision", "deepstack", "prefill", "decode", "greedy"}
    assert set(shipped.stages) == (stages | {"graph", "routed_graph"} if precision.startswith("int") else stages)
    x = _rows()
    for name in ("vision", "deepstack"):
        assert shipped.judge(name, compare_features(x, x)).verdict is Verdict.PASS
    for name in {"prefill", "decode", "graph"} & set(shipped.stages):
        assert shipped.judge(name, compare_logits(x, x)).verdict is Verdict.PASS
        assert shipped.judge(name, compare_logits(x, _rows())).verdict is Verdict.FAIL
    other = compare_greedy(_rows(), np.zeros(70, np.int64), shipped.value("greedy", "tie"))
    assert shipped.judge("greedy", other).verdict is Verdict.FAIL
    with pytest.raises(ParityError, match="no tolerances for fp8"):
        Tolerances.load("fp8")
