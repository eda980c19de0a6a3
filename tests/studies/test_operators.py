"""Splitting runs by operator, and weights from caches and memory beside plain reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge.bench.machine.roofline import Roofline
from gog_edge.errors import BenchError
from studies.operators import (
    AROUND,
    ATTENTION,
    BETWEEN,
    OTHER,
    REST,
    Node,
    Run,
    operator_cells,
    read_profile,
)
from studies.weight_bandwidth import places, weight_cells
from tests.native.graphs import needs_ops


@pytest.fixture(scope="module")
def native_bundle(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in int4 with this package's own operators."""
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "native"
    export_bundle(tiny_checkpoints["qwen3_vl"], out, ExportOptions(precision="int4", backend="native"))
    return out


NODES = {"a": Node("qkv", 100), "b": Node(ATTENTION, 0), "c": Node("qkv", 100)}


def event(name: str, ts: int, dur: int) -> dict[str, object]:
    return {"cat": "Node", "name": name, "ts": ts, "dur": dur}


def test_a_profile_is_split_by_run_and_kind() -> None:
    events = [
        event("model_run", 1000, 100),
        event("a_kernel_time", 1010, 20),
        event("b_kernel_time", 1040, 30),
        event("c_kernel_time", 1075, 15),
        event("unknown_kernel_time", 1092, 5),
        event("model_run", 2000, 50),
        event("a_kernel_time", 2001, 40),
        {"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 900},
    ]
    runs = [Run(150e-6), Run(60e-6)]
    read_profile(events[::-1], NODES, runs)  # whatever order they are written in
    first, second = (run.split() for run in runs)
    wanted = {"qkv": 35e-6, ATTENTION: 30e-6, OTHER: 5e-6, BETWEEN: 30e-6, AROUND: 50e-6}
    assert first == pytest.approx(wanted)
    assert second == pytest.approx({"qkv": 40e-6, BETWEEN: 10e-6, AROUND: 10e-6})
    with pytest.raises(BenchError, match="2 runs instead of 1"):
        read_profile(events, NODES, runs[:1])


@needs_ops
def test_a_prefill_and_a_step_are_split_without_a_rest_unaccounted_for(native_bundle: Path) -> None:
    limits = Roofline(1, 10.0, {"fp32": 50.0})
    found = {(c.stage, c.x): c for c in operator_cells(native_bundle, 2, limits, (64, 96))}
    for x in (64.0, 96.0):
        for stage, ends in (("prefill", {BETWEEN, AROUND, OTHER}), ("decode", {REST})):
            parts = {name: c for (name, at), c in found.items() if at == x and name.startswith(stage)}
            whole = parts.pop(f"{stage} all")
            assert {c.summary.n for c in (whole, *parts.values())} == {2}
            assert sum(c.samples[-1] for c in parts.values()) == pytest.approx(whole.samples[-1])
            assert whole.limit == pytest.approx(sum(c.limit for c in parts.values() if c.limit is not None))
            kinds = {"q+k+v", "o", "gate+up", "down", "head", ATTENTION, *ends}
            assert {f"{stage} {kind}" for kind in kinds} == set(parts)
            assert all(c.summary.minimum > 0 for name, c in parts.items() if not name.endswith(REST))
    more, less = (found["decode attention", x].limit for x in (96.0, 64.0))
    assert more is not None and less is not None and "beside" in found["decode attention", 96.0].note
    assert "of the bf16 peak" in found["prefill attention", 64.0].note
    assert found["prefill head", 64.0].limit is None  # one row: no limit of arithmetic


def test_stock_operators_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BenchError, match="without native operators"):
        list(operator_cells(tiny_bundle, 1, None, (64,)))


@needs_ops
def test_weights_in_a_cache_and_in_memory() -> None:
    found = {c.stage: c for c in weight_cells(2, 24, (1, 2))}
    kernel = [f"int4 weights in {place}" for place in ("a core's cache", "the shared cache", "memory")]
    wanted = [f"{what}, {threads}" for what in ("read", *kernel) for threads in ("1 thread", "2 threads")]
    assert list(found) == [*wanted, "int4 weights in memory, 2 x 1 thread"]
    assert all(c.summary.n == 2 and c.summary.minimum > 0 and not c.lower_is_better for c in found.values())
    assert found["int4 weights in memory, 1 thread"].limit == found["read, 1 thread"].summary.p50
    assert found["int4 weights in memory, 2 x 1 thread"].limit == found["read, 2 threads"].summary.p50
    assert all(p.nodes * p.matrix_bytes > 200e6 for p in places())  # a run is long against starting it
