"""What the gate advises is something that the exporter takes."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from gog_edge.errors import UsageError
from gog_edge.export.options import QUANTISED, ExportOptions, resolve
from gog_edge.export.parity.cause import Evidence, explain
from gog_edge.export.parity.metrics import Stage, Verdict
from gog_edge.manifest import PrecisionName


@pytest.mark.parametrize("precision", QUANTISED)
def test_the_loss_of_quantisation_is_mended_by_what_this_precision_takes(precision: str) -> None:
    chosen = cast("PrecisionName", precision)
    logits = np.zeros((4, 5), np.float32)
    stages = [Stage("graph", Verdict.PASS, {}), Stage("prefill", Verdict.FAIL, {})]
    cause = explain(stages, Evidence(logits, logits, 2, chosen, False))[1].cause
    assert "the loss of quantisation" in cause and "--calibration" in cause
    assert (f"--precision {precision}" not in cause) and ("--precision int8" in cause) == (precision != "int8")
    try:
        resolve(ExportOptions(precision=chosen, backend="native", int8=("attention",)))
        takes = True
    except UsageError:
        takes = False
    assert ("--int8 attention" in cause) == takes
