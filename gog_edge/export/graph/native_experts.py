"""A mixture of experts on this package's own operators: Route, and ExpertLinear… for gate and up and for down."""

from __future__ import annotations

from typing import Any

from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.experts import ExpertFile, Parts, write_float, write_quantized
from gog_edge.export.graph.linear import LinearStore
from gog_edge.export.graph.native_linear import Order, pack
from gog_edge.export.quantize.scheme import QuantizedWeight
from gog_edge.families.target import ExpertStack, Role, Value
from gog_edge.native import contract, packing


def experts(
    g: GraphBuilder,
    store: LinearStore,
    file: ExpertFile,
    x: Value,
    router: Value,
    gate_up: ExpertStack,
    down: ExpertStack,
    top: int,
) -> Value:
    """x [n, hidden] and the router's matrix [count, hidden] -> [n, hidden]; see `Target.experts`."""
    ids, shares = g.ops("Route", x, router, dtypes=("int32", "float32"), domain=contract.DOMAIN, top=top)
    inner = gate_up.rows // 2
    order = packing.gate_up_order(inner)
    first = _linear(g, store, file, (x, ids, None), gate_up, "mlp", order, N=inner, gated=1)
    return _linear(g, store, file, (first, ids, shares), down, "down_proj", None, N=down.rows)


def _linear(
    g: GraphBuilder,
    store: LinearStore,
    file: ExpertFile,
    inputs: tuple[Value | None, ...],
    stack: ExpertStack,
    role: Role,
    order: Order | None,
    **attributes: Any,
) -> Value:
    scheme = store.scheme(stack.expert(0), role)
    if scheme.is_float:
        stored: tuple[Value, ...] = (
            write_float(store, file, stack, "float16" if scheme.bits == 16 else "float32", lambda rows: rows),
        )
        kind = f"ExpertLinearF{scheme.bits}"
    else:
        stored = write_quantized(store, file, stack, scheme, lambda weight: _packed(weight, order))
        kind = f"ExpertLinearW{scheme.bits}"
        turned = scheme.turned(stack.columns)
        attributes |= {"rotation": turned} if turned else {}
    return g.op(kind, *inputs, *stored, dtype="float32", domain=contract.DOMAIN, **attributes)


def _packed(weight: QuantizedWeight, order: Order | None) -> Parts:
    one = pack(weight, order)
    return (one.weight, one.scales) if one.zero_points is None else (one.weight, one.scales, one.zero_points)
