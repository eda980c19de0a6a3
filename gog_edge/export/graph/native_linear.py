"""Linear layers on this package's own operators: LinearW8, LinearW5 and LinearW4 of `gog_edge.native.contract`.

Only the storage layouts are theirs (`contract.packing`, numpy alone); integers and scales come from the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.graph.linear import OrtLinear
from gog_edge.export.graph.matrix import chunks
from gog_edge.export.quantize.scheme import QuantizedWeight, Scheme
from gog_edge.export.quantize.weights import quantize
from gog_edge.families.target import Matrix, Role, Value
from gog_edge.native import contract, packing

Order = NDArray[np.int64]


@dataclass
class NativeLinear(OrtLinear):
    """Integer matrices by native operators, float ones by stock Gemm. Schemes have been through `fit.for_native`.

    `exact`: int4 blocks keep their own scales for every row; else for rows that the decoder writes, and the head.
    `prefill_rows`: the decoder's graph input that says which rows are read, None in the vision tower.
    """

    exact: bool = False
    prefill_rows: Value | None = None

    def linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], role: Role) -> Value:
        scheme = self.scheme(weight, role)
        if scheme.is_float:
            return super().linear(x, weight, biases, role)
        return self._node(x, weight, biases, scheme, role, gated=False)

    def gated(self, x: Value, weight: Matrix, biases: tuple[str, ...], role: Role) -> Value | None:
        scheme = self.scheme(weight, role)
        return None if scheme.is_float else self._node(x, weight, biases, scheme, role, gated=True)

    def _node(
        self, x: Value, weight: Matrix, biases: tuple[str, ...], scheme: Scheme, role: Role, *, gated: bool
    ) -> Value:
        name = f"{weight.label}.weight"
        columns = weight.rows // 2 if gated else weight.rows
        order = packing.gate_up_order(columns) if gated else packing.column_order(columns)
        if not self.g.has(f"{name}.q"):
            # Gate and up are woven into each other, so they are packed whole; a plain matrix goes chunk by chunk.
            parts = iter((self.quantized(weight, scheme),)) if gated else self._strips(weight, scheme)
            self._store(name, weight, parts, order if gated else None)
        bias = self.read_bias(weight, biases)
        packed_bias = None if bias is None else self.g.weight(f"{name}.bias", packing.pack_columns(bias, order))
        q = Value(f"{name}.q", "uint8")
        scale = Value(f"{name}.scale", "float32" if scheme.bits == 8 else "float16")
        zeros = None if scheme.symmetric else Value(f"{name}.zero", "uint8")
        kind = f"LinearW{scheme.bits}"
        activation = contract.ACTIVATIONS["silu_mul" if gated else "none"]
        turned = scheme.turned(weight.columns)
        attributes: dict[str, Any] = {"N": columns, "activation": activation} | ({"rotation": turned} if turned else {})
        rest: tuple[Value | None, ...] = ()
        if scheme.bits < 8:
            exact = self.exact or role == "head"  # the head sees the last rows only: no other numbering of them
            attributes |= {"exact": 1} if exact else {}
            rest = (None, None, None, zeros, None if exact else self.prefill_rows)  # fuse fills the first three
        return self.g.op(kind, x, q, scale, packed_bias, *rest, domain=contract.DOMAIN, **attributes)

    def _strips(self, weight: Matrix, scheme: Scheme) -> Iterator[QuantizedWeight]:
        """Row chunks that are whole strips of packed columns (but for the last one)."""
        stats = self._stats(weight)
        for _, _, rows in chunks(weight, packing.STRIP):
            yield quantize(rows, scheme, stats)
            self.progress(rows.size)

    def _store(self, name: str, weight: Matrix, parts: Iterator[QuantizedWeight], order: Order | None) -> None:
        """Pack and write the parts: weight bytes as they come, scales and zero points at the end."""
        scales: list[NDArray[Any]] = []
        zeros: list[NDArray[np.uint8]] = []
        panels, shape = 0, (0,)
        with self.g.data.blob() as (out, done):
            for part in parts:
                packed = pack(part, order)
                out.write(packed.weight)
                panels, shape = panels + packed.weight.shape[0], packed.weight.shape[1:]
                scales.append(packed.scales)
                if packed.zero_points is not None:
                    zeros.append(packed.zero_points)
        self.g.external(f"{name}.q", done[0], "uint8", (panels, *shape))
        self.g.weight(f"{name}.scale", np.concatenate(scales))
        if zeros:
            self.g.weight(f"{name}.zero", np.concatenate(zeros))


def pack(weight: QuantizedWeight, order: Order | None) -> packing.PackedLinear:
    """A quantised weight in the layout of LinearW8, LinearW5 or LinearW4."""
    if weight.scales is None:
        raise ValueError(f"a weight of {weight.scheme.bits} bits has no integers to pack")
    if weight.scheme.bits == 8:
        return packing.pack_w8(weight.q, weight.scales, order, weight.block)
    if weight.scheme.bits == 5:
        return packing.pack_w5((weight.q + np.int8(16)).astype(np.uint8), weight.scales.astype(np.float16), order)
    middle = np.int16(8)
    zeros = None if weight.zero_points is None else (weight.zero_points + middle).astype(np.uint8)
    q = (weight.q + np.int8(8)).astype(np.uint8)
    return packing.pack_w4(q, weight.scales.astype(np.float16), zeros, order)
