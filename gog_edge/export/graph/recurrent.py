"""The gated delta rule and its convolution in ONNX's own operators, for targets that have nothing better.

One token of one head, with S [key_dim, value_dim] (Yang et al. 2024, arXiv 2412.06464, eq. 10; Qwen3.5's form):

    S *= exp(g);  d = (v - S^T k) * beta;  S += k d^T;  o = S^T q

written as a Scan over tokens. The form in chunks is faster, but it inverts a triangular matrix: without an operator for
that, powers of it are what is left, and they overflow where keys repeat.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.families.target import RecurrentCache, Value

INT64_MAX = np.iinfo(np.int64).max


def convolution(g: GraphBuilder, x: Value, kernel: NDArray[np.float32], past: Value, present: str) -> Value:
    """Causal, a channel at a time: x [rows, channels], kernel [channels, taps], past [1, taps - 1, channels], all
    float32; the sums [rows, channels]. The last inputs are written to the output `present`."""
    channels, taps = kernel.shape
    whole = g.op("Concat", g.op("Reshape", past, _ints(g, -1, channels)), x, axis=0)  # [taps - 1 + rows, channels]
    total: Value | None = None
    for tap in range(taps):
        stop = tap + 1 - taps
        rows = g.op("Slice", whole, _ints(g, tap), _ints(g, stop if stop else INT64_MAX), _ints(g, 0))
        part = g.op("Mul", rows, g.constant(np.ascontiguousarray(kernel[:, tap])))
        total = part if total is None else g.op("Add", total, part)
    last = g.op("Slice", whole, _ints(g, 1 - taps), _ints(g, INT64_MAX), _ints(g, 0))
    g.node("Reshape", [last, _ints(g, 1, taps - 1, channels)], [present])
    assert total is not None, "a kernel without taps"
    return total


def delta_rule(
    g: GraphBuilder,
    kind: RecurrentCache,
    parts: tuple[Value, Value, Value, Value, Value],
    past: Value,
    present: str,
) -> Value:
    """parts: q, k [rows, heads, key_dim], v [rows, heads * value_dim], decay (a logarithm) and update rate
    [rows, heads]; [rows, heads * value_dim]. The state is written to the output `present`."""
    heads, dk, dv = kind.heads, kind.key_dim, kind.value_dim
    q, k, v, decay, rate = parts
    scanned = [
        g.op("Reshape", q, _ints(g, -1, heads, 1, dk)),
        g.op("Reshape", k, _ints(g, -1, heads, 1, dk)),
        g.op("Reshape", v, _ints(g, -1, heads, 1, dv)),
        g.op("Reshape", g.op("Exp", decay), _ints(g, -1, heads, 1, 1)),
        g.op("Reshape", rate, _ints(g, -1, heads, 1, 1)),
    ]
    state = g.op("Reshape", past, _ints(g, heads, dk, dv))
    end, out = g.ops("Scan", state, *scanned, dtypes=(None, None), body=_body(kind), num_scan_inputs=len(scanned))
    g.node("Reshape", [end, _ints(g, 1, heads, dk, dv)], [present])
    return g.op("Reshape", out, _ints(g, -1, heads * dv))


def _body(kind: RecurrentCache) -> onnx.GraphProto:
    """What is done for one token."""
    heads, dk, dv = kind.heads, kind.key_dim, kind.value_dim

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        made: onnx.ValueInfoProto = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        return made

    nodes = [
        helper.make_node("Mul", ["state", "decay"], ["faded"]),
        helper.make_node("MatMul", ["k", "faded"], ["known"]),
        helper.make_node("Sub", ["v", "known"], ["new"]),
        helper.make_node("Mul", ["new", "rate"], ["delta"]),
        helper.make_node("Transpose", ["k"], ["column"], perm=(0, 2, 1)),
        helper.make_node("Mul", ["column", "delta"], ["change"]),
        helper.make_node("Add", ["faded", "change"], ["next"]),
        helper.make_node("MatMul", ["q", "next"], ["out"]),
    ]
    inputs = [
        info("state", heads, dk, dv),
        info("q", heads, 1, dk),
        info("k", heads, 1, dk),
        info("v", heads, 1, dv),
        info("decay", heads, 1, 1),
        info("rate", heads, 1, 1),
    ]
    body: onnx.GraphProto = helper.make_graph(
        nodes, "token", inputs, [info("next", heads, dk, dv), info("out", heads, 1, dv)]
    )
    return body


def _ints(g: GraphBuilder, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))
