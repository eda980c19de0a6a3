"""The gate's limits for quantised bundles follow from the table of the study by a rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gog_edge.export.parity.metrics import Tolerances
from studies import text_loss

ROWS = {row["name"]: row for row in json.loads((Path(text_loss.__file__).with_suffix(".json")).read_text("utf-8"))}


@pytest.mark.parametrize("precision", ["int8", "int5", "int4"])
def test_limits_follow_from_the_table(precision: str) -> None:
    stages = Tolerances.load(precision).stages
    kl, top1 = text_loss.gate_limits(list(ROWS.values()), precision)
    assert stages["prefill"]["at_most"]["kl_mean"] == stages["decode"]["at_most"]["kl_mean"] == kl
    assert stages["prefill"]["at_least"]["top1_agreement"] == stages["greedy"]["at_least"]["agreement"] == top1


def test_every_row_is_a_variant_that_the_study_makes() -> None:
    assert set(ROWS) <= set(text_loss.variants())
    assert {"int8, native", "int5, native", "int4, native"} <= set(ROWS)
