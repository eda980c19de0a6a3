"""The decoder's matrices as a bundle stores them, dequantised: integers and scales read back from its graph.

Where calibration decided how weights are rounded, this is how the gate knows what they are: computing the integers
again would need the same sums in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gog_edge.bundle import Bundle
from gog_edge.export.graph.matrix import joined_label
from gog_edge.families.weights import Watched
from gog_edge.native import packing
from gog_edge.native.contract import ACTIVATIONS
from gog_edge.native.rotation import rotate_back

F32 = NDArray[np.float32]


class StoredWeights:
    """Call it with a checkpoint's weight name for the rows [out, in] that the decoder's graph multiplies with."""

    def __init__(self, bundle: Bundle, decoder: Watched) -> None:
        """`decoder`: what the graph was made of (`gog_edge.families.weights.decoder_matrices`)."""
        path = bundle.path(bundle.manifest.graphs["decoder"].file)
        graph = onnx.load(str(path), load_external_data=False).graph
        self._folder = path.parent
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {node.input[1].removesuffix(".q"): node for node in graph.node if node.op_type in _READERS}
        self._stacks = {name: names for names, _ in decoder.matrices for name in names}
        self._decoder = decoder

    def __call__(self, name: str) -> F32 | None:
        """None: stored otherwise, as floats or as an expert."""
        names, shapes = self._stacks.get(name, (name,)), self._decoder.shapes
        node = self._nodes.get(f"{joined_label(names)}.weight")
        if node is None:
            return None
        rows, columns = [shapes[part][0] for part in names], shapes[name][1]
        stack = _READERS[node.op_type](node, self._read)[:, :columns]
        block = _attributes(node).get("rotation", 0)
        stack = rotate_back(stack, block) if block else stack
        if order := self._decoder.orders.get(names):
            back = np.empty_like(stack)
            back[list(order)] = stack
            stack = back
        start = sum(rows[: names.index(name)])
        return stack[start : start + shapes[name][0]]

    def _read(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = numpy_helper.to_array(self._tensors[name], str(self._folder))
        return array


Read = Callable[[str], NDArray[Any]]


def _attributes(node: onnx.NodeProto) -> Mapping[str, int]:
    return {a.name: a.i for a in node.attribute}


def _linear(node: onnx.NodeProto, read: Read) -> F32:
    """LinearW8, LinearW5 and LinearW4 (`gog_edge.native.packing`): the rows in their own order."""
    about = _attributes(node)
    packed, scales = read(node.input[1]), read(node.input[2]).astype(np.float32)
    rows = len(packed) * packing.PANEL
    if node.op_type == "LinearW8":
        q = packed.transpose(0, 2, 1, 3).reshape(rows, -1).astype(np.int16) - 128
        zeros = None
    elif node.op_type == "LinearW5":
        q = packing.unpack_w5(packed).astype(np.int16) - 16
        zeros = None
    else:
        halves = np.stack([packed & 15, packed >> 4], axis=3)  # [panels, K/8, 16, 2, 4]
        q = halves.transpose(0, 2, 1, 3, 4).reshape(rows, -1).astype(np.int16)
        zeros = read(node.input[7]) if len(node.input) > 7 and node.input[7] else np.full(scales.shape, 8, np.uint8)

    def by_column(values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values.transpose(0, 2, 1).reshape(rows, -1), q.shape[1] // values.shape[1], axis=1)

    values = q.astype(np.float32)
    if zeros is not None:
        values -= by_column(zeros)
    values *= by_column(scales)
    gated = about["activation"] == ACTIVATIONS["silu_mul"]
    order = packing.gate_up_order(about["N"]) if gated else packing.column_order(about["N"])
    plain = np.empty((about["N"] * (2 if gated else 1), values.shape[1]), np.float32)
    plain[order[order >= 0]] = values[order >= 0]
    return plain


def _nbits(node: onnx.NodeProto, read: Read) -> F32:
    """MatMulNBits: blocks of unsigned integers along K."""
    about = _attributes(node)
    bits, middle = about["bits"], 1 << (about["bits"] - 1)
    packed, scales = read(node.input[1]), read(node.input[2]).astype(np.float32)
    rows, blocks = packed.shape[:2]
    q = _unpacked(packed, bits).astype(np.float32)
    zeros = np.full((rows, blocks), middle, np.float32)
    if len(node.input) > 3 and node.input[3]:
        zeros = _unpacked(read(node.input[3]).reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
    values: F32 = (q - zeros[..., None]) * scales.reshape(rows, blocks, 1)
    return values.reshape(rows, -1)


def _unpacked(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The last axis with a number an element, the first in the low half."""
    if bits == 8:
        return values
    return np.stack([values & np.uint8(15), values >> np.uint8(4)], axis=-1).reshape(*values.shape[:-1], -1)


def _dynamic(node: onnx.NodeProto, read: Read) -> F32:
    """DynamicQuantizeMatMul: the matrix lies turned on its side, one scale an output."""
    values: F32 = read(node.input[1]).T.astype(np.float32) * read(node.input[2]).reshape(-1, 1)
    return values


_READERS: dict[str, Callable[[onnx.NodeProto, Read], F32]] = {
    "LinearW8": _linear,
    "LinearW5": _linear,
    "LinearW4": _linear,
    "MatMulNBits": _nbits,
    "DynamicQuantizeMatMul": _dynamic,
}
