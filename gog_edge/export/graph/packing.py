"""Storage layouts of quantised weights, as the operators document them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.quantize.scheme import QuantizedWeight


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """4-bit values of the last axis, two a byte, the first in the low half; an odd end is padded with 0."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    low, high = values[..., 0::2] & np.uint8(0xF), values[..., 1::2] << np.uint8(4)
    packed: NDArray[np.uint8] = np.bitwise_or(low, high)
    return packed


def matmul_nbits(weight: QuantizedWeight) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """(B [rows, blocks, block*bits/8], scales [rows, blocks], zero points [rows, ceil(blocks*bits/8)] or None).

    com.microsoft.MatMulNBits stores unsigned values with a middle of 2^(bits-1), which is also the zero point when
    none is given. A short last block is filled up with zeros of the weight.
    """
    scales = _scales(weight)
    bits, middle = weight.scheme.bits, 1 << (weight.scheme.bits - 1)
    rows, columns = weight.shape
    block = weight.scheme.block or weight.block
    blocks = -(-columns // block)
    q = (weight.q.astype(np.int16) + middle).astype(np.uint8)
    if blocks * block != columns:
        padded = np.full((rows, blocks * block), middle, np.uint8)
        padded[:, :columns] = q
        if weight.zero_points is not None:
            tail = weight.zero_points[:, -1:].astype(np.int16) + middle
            padded[:, columns:] = tail.astype(np.uint8)
        q = padded
    q = q.reshape(rows, blocks, block)
    zeros = None
    if weight.zero_points is not None:
        zeros = (weight.zero_points.astype(np.int16) + middle).astype(np.uint8)
    if bits == 4:
        q = pack_nibbles(q)
        zeros = None if zeros is None else pack_nibbles(zeros)
    return q, scales, zeros


def onnx_int4(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """An ONNX INT4 tensor's bytes: all elements in C order, two a byte."""
    return pack_nibbles((values.reshape(-1).view(np.uint8)) & np.uint8(0xF))


def transposed(array: NDArray[Any]) -> NDArray[Any]:
    """[rows, columns] as contiguous [columns, rows]."""
    return np.ascontiguousarray(array.T)


def _scales(weight: QuantizedWeight) -> NDArray[np.float32]:
    if weight.scales is None:
        raise ValueError(f"a weight of {weight.scheme.bits} bits has no scales to pack")
    return weight.scales
