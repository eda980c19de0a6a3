"""One-node ONNX models, serialised by hand: the runtime has no onnx package to make its self-test with.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, ValueInfoProto, AttributeProto).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gog_edge.native.contract import DOMAIN, VERSION

_FLOAT, _UINT8 = 1, 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _tensor(name: str, element: int, rank: int) -> bytes:
    """ValueInfoProto of a tensor with `rank` unknown axes."""
    shape = b"".join(_bytes(1, _bytes(2, f"{name}_{axis}")) for axis in range(rank))
    tensor_type = _number(1, element) + _bytes(2, shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor_type))


def probe_model(columns: int) -> bytes:
    """y = LinearW8(x, weight, scales) with all three as graph inputs and N = columns."""
    attribute = _bytes(1, "N") + _number(3, columns) + _number(20, 2)
    node = b"".join(_bytes(1, name) for name in ("x", "weight", "scales"))
    node += _bytes(2, "y") + _bytes(4, "LinearW8") + _bytes(5, attribute) + _bytes(7, DOMAIN)
    graph = _bytes(1, node) + _bytes(2, "probe")
    for name, element, rank in (("x", _FLOAT, 2), ("weight", _UINT8, 4), ("scales", _FLOAT, 3)):
        graph += _bytes(11, _tensor(name, element, rank))
    graph += _bytes(12, _tensor("y", _FLOAT, 2))
    opsets = _bytes(8, _bytes(1, "") + _number(2, 17)) + _bytes(8, _bytes(1, DOMAIN) + _number(2, VERSION))
    return _number(1, 8) + opsets + _bytes(7, graph)


def gemm_model(weight: NDArray[np.float32]) -> bytes:
    """y = x weight^T of [m, K] and a constant [N, K], as float matrices stand in a decoder graph."""
    transposed = _bytes(1, "transB") + _number(3, 1) + _number(20, 2)
    node = _bytes(1, "x") + _bytes(1, "w") + _bytes(2, "y") + _bytes(4, "Gemm") + _bytes(5, transposed)
    sizes = b"".join(_number(1, size) for size in weight.shape)
    stored = sizes + _number(2, _FLOAT) + _bytes(8, "w") + _bytes(9, weight.astype("<f4").tobytes())
    graph = _bytes(1, node) + _bytes(2, "gemm") + _bytes(5, stored)
    graph += _bytes(11, _tensor("x", _FLOAT, 2)) + _bytes(12, _tensor("y", _FLOAT, 2))
    return _number(1, 8) + _bytes(8, _bytes(1, "") + _number(2, 17)) + _bytes(7, graph)
