"""The KV cache is written in place: same buffers, other rows untouched, no cost by capacity."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from gog_edge.bundle import Bundle
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from tests.export.graph_driver import Runner
from tests.families.sequence import text_positions
from tests.versions import need_portable


@pytest.fixture(scope="module", params=["ort", "portable"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if request.param == "portable":
        need_portable()
    folder = tmp_path_factory.mktemp("b")
    root = make_checkpoint("tiny-qwen2.5-vl", folder / "c", 1, "float32")
    return export_bundle(root, folder / "b", ExportOptions(precision="fp32", backend=request.param))


def rows(count: int, hidden: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, hidden), np.float32)


def test_only_new_rows_are_written_into_the_same_memory(bundle: Bundle) -> None:
    runner = Runner(bundle, capacity=40)
    marks = {name: value.data_ptr() for name, value in runner.cache.items()}
    for value in runner.cache.values():
        value.update_inplace(np.full(value.shape(), 7.0, np.float32))
    for count in (5, 1, 3):
        before = {name: value.numpy().copy() for name, value in runner.cache.items()}
        past = runner.past
        runner.step(rows(count, runner.spec.hidden), text_positions(past, count))
        for name, value in runner.cache.items():
            after = value.numpy()
            assert value.data_ptr() == marks[name]
            new = np.zeros(runner.capacity, bool)
            new[past : past + count] = True
            np.testing.assert_array_equal(after[0, :, ~new], before[name][0, :, ~new])
            assert (after[0, :, new] != 7.0).all()


@pytest.mark.parametrize("bundle", ["ort"], indirect=True)
def test_a_step_costs_the_same_at_any_capacity(bundle: Bundle) -> None:
    """Copying the large cache (150 MB) would take tens of milliseconds (`portable` attends over all of it)."""

    def fastest(capacity: int) -> float:
        runner: Any = Runner(bundle, capacity)
        x, spent = rows(1, runner.spec.hidden), []
        for _ in range(12):
            start = time.perf_counter()
            runner.step(x, text_positions(runner.past, 1))
            spent.append(time.perf_counter() - start)
        return min(spent)

    small, large = fastest(32), fastest(1 << 17)
    assert large < 5 * small + 0.003
