"""A mixture of experts in ONNX's own operators: a loop over the experts that some row needs.

A round gathers one expert's matrices and the rows that go to it, so a run reads only what is routed, and its work is
that of the routed rows. Gather has no 4-bit type: experts that a recipe stores in 4 bits take 8 here, and with
portable graphs, where only one scale a row fits every runtime, they are quantised to 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.experts import ExpertFile, Parts, write_float, write_quantized
from gog_edge.export.graph.linear import LinearStore
from gog_edge.export.graph.packing import transposed
from gog_edge.export.quantize.fit import for_portable
from gog_edge.export.quantize.scheme import QuantizedWeight
from gog_edge.families.target import ExpertStack, Role, Value
from gog_edge.manifest import DType


@dataclass(frozen=True)
class LoopedExperts:
    """Builds the nodes; rows and logits are float32. `as_told`: integers as the recipe has them, blocks included."""

    g: GraphBuilder
    store: LinearStore
    file: ExpertFile
    as_told: bool = False

    def __call__(self, x: Value, logits: Value, gate_up: ExpertStack, down: ExpertStack, top: int) -> Value:
        """x [n, hidden] and logits [n, count] -> [n, hidden]; see `Target.experts`."""
        g = self.g
        mix = self._mix(logits, top)
        hit = self._nonzero(g.op("ReduceMax", mix, self._ints(0), keepdims=0))
        first, second = self._stored(gate_up, "mlp"), self._stored(down, "down_proj")
        zero = g.op("Mul", x, g.constant(np.array(0, np.float32)))

        def one(turn: Value, total: Value) -> Value:
            expert = g.op("Gather", hit, turn, axis=0)
            share = g.op("Gather", mix, expert, axis=1)  # [n]
            rows = self._nonzero(share)
            y = g.op("MatMul", g.op("Gather", x, rows, axis=0), self._matrix(first, expert))
            gate, up = g.ops("Split", y, self._ints(gate_up.rows // 2, gate_up.rows // 2), dtypes=(None, None), axis=-1)
            y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
            y = g.op("MatMul", y, self._matrix(second, expert))
            y = g.op("Mul", y, self._column(g.op("Gather", share, rows, axis=0)))
            return g.op("ScatterND", total, self._column(rows), y, dtype="float32", reduction="add")

        return g.loop(g.op("Size", hit, dtype="int64"), zero, one)

    def _mix(self, logits: Value, top: int) -> Value:
        """Each expert's share of each row [n, count], 0 for those that were not picked."""
        g = self.g
        best, index = g.ops("TopK", logits, self._ints(top), dtypes=(None, "int64"), axis=-1)
        shares = g.op("Softmax", best, axis=-1)
        return g.op("ScatterElements", g.op("Mul", logits, g.constant(np.array(0, np.float32))), index, shares, axis=1)

    def _nonzero(self, x: Value) -> Value:
        """Where a vector is not 0, [m]."""
        return self.g.op("Squeeze", self.g.op("NonZero", x, dtype="int64"), self._ints(0))

    def _column(self, x: Value) -> Value:
        return self.g.op("Unsqueeze", x, self._ints(-1))

    def _ints(self, *values: int) -> Value:
        return self.g.constant(np.array(values, np.int64))

    def _stored(self, stack: ExpertStack, role: Role) -> _Stored:
        scheme = self.store.scheme(stack.expert(0), role)
        if scheme.is_float:
            dtype: DType = "float16" if scheme.bits == 16 else "float32"
            return _Stored((write_float(self.store, self.file, stack, dtype, transposed),), 0)
        if not self.as_told:
            scheme = for_portable(scheme if scheme.bits == 8 else replace(scheme, bits=8, block=0, method="rtn"))
        return _Stored(write_quantized(self.store, self.file, stack, scheme, _turned), scheme.block)

    def _matrix(self, stored: _Stored, expert: Value) -> Value:
        """One matrix [columns, rows] in float32."""
        parts = [self.g.op("Gather", part, expert, axis=0) for part in stored.parts]
        if len(parts) == 1:
            return self.g.cast(parts[0], "float32")
        if stored.block:
            return self.g.op("DequantizeLinear", *parts, dtype="float32", axis=0, block_size=stored.block)
        return self.g.op("DequantizeLinear", *parts, dtype="float32", axis=1)


@dataclass(frozen=True)
class _Stored:
    """A stack as MatMul takes it, [count, columns, rows]: floats, or int8, scales and zero points if there are any;
    `block`: columns that share a scale, 0: all."""

    parts: tuple[Value, ...]
    block: int


def _turned(weight: QuantizedWeight) -> Parts:
    row = not weight.scheme.block
    scales: NDArray[np.float32] = np.asarray(weight.scales, np.float32)
    parts = [scales.reshape(-1) if row else transposed(scales)]
    if weight.zero_points is not None:
        parts.append(weight.zero_points.reshape(-1) if row else transposed(weight.zero_points))
    return transposed(weight.q), *parts
