"""How fast one and two threads read int4 weights, from the caches and from memory, beside plain reads.

    python -m studies.weight_bandwidth [--repeats N] [--out REPORT.json]

Decoding reads every weight once a token. Three things may limit it: memory, the arithmetic of one row (widening 4 bits,
dot products), or how many reads a core keeps in flight while it computes. A plain read gives the first, the same kernel
on a matrix that stays in a core's own cache the second; what the kernel loses between there and memory is the third.

Everything takes turns within a round: a virtual machine's bandwidth moves by the minute. Each graph is a row of equal
nodes over one x, so that starting ONNX Runtime is paid once for all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.bench.machine.roofline import read_rate
from gog_edge.bench.result import Cell
from gog_edge.bench.statistics import percentile, settled
from gog_edge.errors import BenchError
from gog_edge.native import dispatch, packing
from gog_edge.native.contract import DOMAIN, VERSION
from gog_edge.shapes import SHAPES
from studies.cells import add_arguments, publish

SCENARIO, OURS = "weights", "gog-edge"
BLOCK = 32
MEMORY_MB = 256  # of weights that take turns: several times any cache


@dataclass(frozen=True)
class Place:
    """Where the weights of a row of nodes lie: `distinct` matrices [n, k] in turns, `nodes` of them a run."""

    name: str
    n: int
    k: int
    distinct: int
    nodes: int

    @property
    def matrix_bytes(self) -> int:
        """int4 weights and the float16 scales of their blocks."""
        return self.n * self.k // 2 + self.n * self.k // BLOCK * 2


def places(memory_mb: int = MEMORY_MB) -> tuple[Place, ...]:
    """A core's own cache, the shared cache, memory; the last two with gate and up of the 2B shape."""
    policy = SHAPES["qwen3-vl-2b"]
    n, k = 2 * policy.intermediate, policy.hidden
    wide = Place("", n, k, 1, 1).matrix_bytes
    count = max(2, (memory_mb << 20) // wide)
    return (
        Place("a core's cache", 1024, 1024, 1, 24 * count),
        Place("the shared cache", n, k, 1, count),
        Place("memory", n, k, count, count),
    )


def weight_cells(repeats: int, memory_mb: int = MEMORY_MB, threads: Sequence[int] = ()) -> Iterator[Cell]:
    """Rates in 10^9 bytes per second: "read" and "int4 weights in PLACE", each with one thread and with all.

    From memory also in sessions of one thread each, which do not wait for each other. The limit of the kernel in
    memory is the median read of the same threads and rounds. A sample is the best of three of a round.

    Raises:
        BenchError: the native operators are not available, or the onnx package is missing.
    """
    if (reason := dispatch.available()) is not None:
        raise BenchError(reason)
    counts = tuple(threads) or tuple(sorted({1, usable_threads()}))
    buffer = np.ones((2 * memory_mb << 20) // 8, np.float64)
    made = {(place, t): _Row(place, t) for place in places(memory_mb) for t in counts}
    reads: dict[int, list[float]] = {t: [] for t in counts}
    rates: dict[tuple[Place, int], list[float]] = {key: [] for key in made}
    apart = [_Row(places(memory_mb)[-1], 1) for _ in range(max(counts))]
    alone: list[float] = []
    for _ in range(repeats):
        for t in counts:
            reads[t].append(read_rate(buffer, t, repeats=3))
        for key, row in made.items():
            rates[key].append(row.rate())
        alone.append(_together(apart))
    for t in counts:
        yield Cell(SCENARIO, OURS, f"read, {_threads(t)}", "GB/s", tuple(reads[t]), lower_is_better=False)
    for (place, t), found in rates.items():
        limit = percentile(reads[t], 50) if place.name == "memory" else None
        stage = f"int4 weights in {place.name}, {_threads(t)}"
        note = f"{place.distinct} x {place.matrix_bytes / 2**20:.2g} MiB"
        yield Cell(SCENARIO, OURS, stage, "GB/s", tuple(found), lower_is_better=False, limit=limit, note=note)
    if len(apart) > 1:
        stage, note = f"int4 weights in memory, {len(apart)} x 1 thread", "sessions that do not wait for each other"
        limit = percentile(reads[max(counts)], 50)
        yield Cell(SCENARIO, OURS, stage, "GB/s", tuple(alone), lower_is_better=False, limit=limit, note=note)


def _together(rows: Sequence[_Row], runs: int = 3) -> float:
    """10^9 bytes per second of all rows at once, each in a session and a thread of its own; the best of `runs`."""
    with ThreadPoolExecutor(len(rows)) as pool:
        best = min(settled(lambda: list(pool.map(_Row.run, rows)), runs))
    return sum(row.nbytes for row in rows) / best / 1e9


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


class _Row:
    """Nodes LinearW4 side by side on one row x [1, k]; weights are inputs, bound once."""

    def __init__(self, place: Place, threads: int) -> None:
        import onnxruntime

        self.place = place
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # equal nodes would be one node after optimisation
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if (reason := dispatch.register(options)) is not None:
            raise BenchError(reason)
        self._session = onnxruntime.InferenceSession(_model(place), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        rng = np.random.default_rng(place.n)
        panels = place.n // packing.PANEL
        # one buffer each, as in a bundle: huge pages where numpy asks for them
        shape = (place.distinct, panels, place.k // 8, 16, 4)
        weights: NDArray[np.uint8] = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape).copy()
        scales = np.full((place.distinct, panels, place.k // BLOCK, 16), 0.01, np.float16)
        self._kept = [rng.standard_normal((1, place.k), np.float32), *weights, *scales]
        names = ["x", *(f"w{i}" for i in range(place.distinct)), *(f"s{i}" for i in range(place.distinct))]
        for name, array in zip(names, self._kept):
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        self._binding.bind_output("y", "cpu")
        self.run()

    def rate(self, runs: int = 3) -> float:
        """10^9 bytes of weights and scales a second, the best of `runs`."""
        return self.nbytes / min(settled(self.run, runs)) / 1e9

    def run(self) -> None:
        """All nodes once."""
        self._session.run_with_iobinding(self._binding)

    @property
    def nbytes(self) -> int:
        """Weights and scales that a run reads."""
        return self.place.nodes * self.place.matrix_bytes


def _model(place: Place) -> bytes:
    try:
        from onnx import TensorProto, helper
    except ImportError as e:
        raise BenchError("making the graphs needs onnx: pip install 'gog-edge[export]'") from e
    panels = place.n // packing.PANEL
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, place.k])]
    for i in range(place.distinct):
        weight, scales = [panels, place.k // 8, 16, 4], [panels, place.k // BLOCK, 16]
        inputs.append(helper.make_tensor_value_info(f"w{i}", TensorProto.UINT8, weight))
        inputs.append(helper.make_tensor_value_info(f"s{i}", TensorProto.FLOAT16, scales))
    nodes = [
        helper.make_node(
            "LinearW4", ["x", f"w{i % place.distinct}", f"s{i % place.distinct}"], [f"y{i}"], domain=DOMAIN, N=place.n
        )
        for i in range(place.nodes)
    ]
    nodes.append(helper.make_node("Max", [f"y{i}" for i in range(place.nodes)], ["y"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, place.n])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(nodes, "row", inputs, outputs)
    model: Any = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.weight_bandwidth", description=__doc__)
    add_arguments(parser, repeats=12)
    given = parser.parse_args(arguments)
    return publish(lambda: weight_cells(given.repeats), given)


if __name__ == "__main__":
    sys.exit(main())
