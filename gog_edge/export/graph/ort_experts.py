"""A mixture of experts in ONNX Runtime's own operators: MoE (floats) and QMoE (4 and 8 bits) of com.microsoft.

Both compute softmax, choice and normalisation from the router's logits themselves. Their SwiGLU has gate and up woven
into each other, row by row, and constants of GPT-OSS's that are turned off here (alpha 1, beta 0, no limit).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.graph import packing
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.experts import ExpertFile, Parts, write_float, write_quantized
from gog_edge.export.graph.linear import LinearStore
from gog_edge.export.quantize.scheme import QuantizedWeight, Scheme
from gog_edge.families.target import ExpertStack, Value

MS = "com.microsoft"
SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}


def fits(first: Scheme, second: Scheme, gate_up: ExpertStack, down: ExpertStack) -> bool:
    """Whether one node can hold experts of these schemes: both alike, symmetric, and whole blocks."""
    if first.is_float or second.is_float:
        return first.bits == second.bits
    alike = (first.bits, first.block, first.symmetric) == (second.bits, second.block, True)
    return alike and not (first.block and (gate_up.columns % first.block or down.columns % first.block))


def moe(
    g: GraphBuilder,
    store: LinearStore,
    file: ExpertFile,
    x: Value,
    logits: Value,
    gate_up: ExpertStack,
    down: ExpertStack,
    top: int,
) -> Value:
    """x [n, hidden] and logits [n, count] -> [n, hidden], in float32; schemes are alike (`fits`)."""
    scheme = store.scheme(gate_up.expert(0), "mlp")
    attributes: dict[str, Any] = {"k": top, **SWIGLU}
    if scheme.is_float:
        half = scheme.bits == 16
        first = write_float(store, file, gate_up, "float16" if half else "float32", woven)
        second = write_float(store, file, down, "float16" if half else "float32", lambda rows: rows)
        parts = (g.cast(first, "float32"), None, g.cast(second, "float32"))
        return g.op("MoE", x, logits, *parts, domain=MS, **attributes)
    q1, s1 = write_quantized(store, file, gate_up, scheme, lambda weight: _packed(weight, weave=True))
    q2, s2 = write_quantized(store, file, down, store.scheme(down.expert(0), "down_proj"), _packed)
    attributes["expert_weight_bits"] = scheme.bits
    if scheme.block:
        attributes["block_size"] = scheme.block
    return g.op("QMoE", x, logits, q1, s1, None, q2, s2, domain=MS, **attributes)


def woven(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """[gate; up] as gate 0, up 0, gate 1, up 1 …"""
    return rows.reshape(2, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _packed(weight: QuantizedWeight, weave: bool = False) -> Parts:
    """(unsigned q [rows, columns * bits / 8], scales [rows, blocks], or [rows] where a row is one block)."""
    q, scales, _ = packing.matmul_nbits(weight)
    q = q.reshape(len(q), -1)
    if scales.shape[1] == 1 and not weight.scheme.block:
        scales = scales.reshape(-1)
    return (woven(q), woven(scales)) if weave else (q, scales)
