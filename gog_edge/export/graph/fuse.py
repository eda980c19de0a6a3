"""Folds norms, activations and residual additions into the native linear nodes beside them.

A pass over finished nodes: families say what is computed, this says that one operator computes it. Requires nodes in
topological order; ensures the same outputs from fewer nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx
from onnx import helper

from gog_edge.native.contract import ACTIVATIONS, DOMAIN, NORMS

Take = Callable[[onnx.NodeProto, onnx.NodeProto, str], bool]  # (linear, follower, the value between them)
LINEAR = ("LinearW8", "LinearW5", "LinearW4")
RESIDUAL, NORM_WEIGHT, NORM_BIAS = 4, 5, 6  # inputs of a linear node
_NORM_KINDS = {"SimplifiedLayerNormalization": "rms", "LayerNormalization": "layer"}


def fuse(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes, fused. `outputs` are the graph's: they stay."""
    nodes = _fold_norms(nodes, outputs)
    nodes = _fold_followers(nodes, outputs, _take_activation)
    return _fold_followers(nodes, outputs, _take_residual)


def _uses(nodes: list[onnx.NodeProto], outputs: set[str]) -> Counter[str]:
    return Counter([name for node in nodes for name in node.input if name]) + Counter(outputs)


def _is_linear(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type in LINEAR)


def _fold_norms(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """norm -> linear: where nobody else reads the norm's output."""
    uses = _uses(nodes, outputs)
    norms = {node.output[0]: node for node in nodes if node.op_type in _NORM_KINDS and uses[node.output[0]] == 1}
    folded = set()
    for node in nodes:
        norm = norms.get(node.input[0]) if _is_linear(node) else None
        if norm is None:
            continue
        folded.add(norm.output[0])
        node.input[0] = norm.input[0]
        for place, name in zip((NORM_WEIGHT, NORM_BIAS), norm.input[1:]):
            _set_input(node, place, name)
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        _set_attribute(node, "norm", NORMS[_NORM_KINDS[norm.op_type]])
        _set_attribute(node, "epsilon", epsilon)
    return [node for node in nodes if node.output[0] not in folded]


def _fold_followers(nodes: list[onnx.NodeProto], outputs: set[str], take: Take) -> list[onnx.NodeProto]:
    """linear -> follower: where the follower alone reads the linear's output and the linear can take its work over.

    The linear node moves to the follower's place: what else the follower reads may come after the linear.
    """
    uses = _uses(nodes, outputs)
    linears = {node.output[0]: node for node in nodes if _is_linear(node) and uses[node.output[0]] == 1}
    moved: dict[str, onnx.NodeProto] = {}  # follower's output -> the linear that stands for it
    for node in nodes:
        for name in node.input:
            linear = linears.get(name)
            if linear is not None and linear.output[0] == name and take(linear, node, name):
                linear.output[0] = node.output[0]
                moved[node.output[0]] = linear
                break
    gone = {id(linear) for linear in moved.values()}
    result = []
    for node in nodes:
        if id(node) in gone:
            continue
        result.append(moved.get(node.output[0], node))
    return result


def _take_activation(linear: onnx.NodeProto, node: onnx.NodeProto, _: str) -> bool:
    if node.op_type != "Gelu" or _attribute(linear, "activation"):
        return False
    tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
    _set_attribute(linear, "activation", ACTIVATIONS["gelu_tanh" if tanh else "gelu"])
    return True


def _take_residual(linear: onnx.NodeProto, node: onnx.NodeProto, name: str) -> bool:
    if node.op_type != "Add" or _has_input(linear, RESIDUAL) or node.input[0] == node.input[1]:
        return False
    other = node.input[1] if node.input[0] == name else node.input[0]
    _set_input(linear, RESIDUAL, other)
    return True


def _has_input(node: onnx.NodeProto, place: int) -> bool:
    return len(node.input) > place and bool(node.input[place])


def _set_input(node: onnx.NodeProto, place: int, name: str) -> None:
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = name


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _set_attribute(node: onnx.NodeProto, name: str, value: float | int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            node.attribute.remove(attribute)
            break
    node.attribute.append(helper.make_attribute(name, value))
