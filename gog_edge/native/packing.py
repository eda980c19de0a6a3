"""Write the weight layouts the native operators read (numpy only; used by the exporter).

Quantisation itself is the exporter's: these functions take integers and scales and only move them.  Layouts
are the same on every CPU, so a bundle exported on one machine runs on another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PANEL = 16
"""Columns of y that lie side by side in a packed weight."""
STRIP = 32
"""Columns of y are padded to a multiple of this."""


@dataclass(frozen=True)
class PackedLinear:
    """Inputs 1, 2 and 7 of LinearW8 / LinearW5 / LinearW4, ready to be stored as initializers."""

    weight: NDArray[np.uint8]
    scales: NDArray[np.float32] | NDArray[np.float16]
    zero_points: NDArray[np.uint8] | None = None

    @property
    def columns(self) -> int:
        """Packed number of columns of y (Np)."""
        return int(self.weight.shape[0]) * PANEL


def column_order(columns: int) -> NDArray[np.int64]:
    """Source row of each packed column for a plain linear: 0 … columns - 1, then -1 (padding) up to 32s."""
    order = np.full(-(-columns // STRIP) * STRIP, -1, dtype=np.int64)
    order[:columns] = np.arange(columns)
    return order


def gate_up_order(intermediate: int) -> NDArray[np.int64]:
    """Source row of each packed column for silu_mul, of the stacked weight [gate; up] ([2 * intermediate, K]).

    Panels alternate: 16 gate columns, the 16 up columns that multiply them, and so on.
    """
    padded = -(-intermediate // PANEL) * PANEL
    gate = np.full(padded, -1, dtype=np.int64)
    gate[:intermediate] = np.arange(intermediate)
    up = np.where(gate >= 0, gate + intermediate, -1)
    return np.stack([gate.reshape(-1, PANEL), up.reshape(-1, PANEL)], axis=1).reshape(-1)


def _take(rows: NDArray[np.generic], order: NDArray[np.int64], fill: float) -> NDArray[np.generic]:
    taken = rows[np.maximum(order, 0)]
    taken[order < 0] = fill
    return taken


def pack_columns(values: NDArray[np.float32], order: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """A bias [N] in packed column order, [Np]; padding is 0."""
    order = column_order(len(values)) if order is None else order
    packed = _take(np.asarray(values, np.float32), order, 0)
    return packed.astype(np.float32, copy=False)


def pack_w8(
    q: NDArray[np.int8],
    scales: NDArray[np.float32],
    order: NDArray[np.int64] | None = None,
    block: int | None = None,
) -> PackedLinear:
    """LinearW8's layout of q [N, K] (values -127 … 127) with scales [N], or [N, groups] of `block` columns of K each.

    K is padded to a multiple of the block, or of 4.  Raises ValueError on shapes that do not fit or on a -128 (its
    product is not exact on every CPU).
    """
    scales = scales[:, None] if scales.ndim == 1 else scales
    if q.ndim != 2 or q.dtype != np.int8 or scales.ndim != 2 or len(scales) != len(q):
        raise ValueError(
            f"pack_w8 needs int8 [N, K] and scales [N] or [N, groups], got {q.dtype} {q.shape} and {scales.shape}"
        )
    if q.size and int(q.min()) < -127:
        raise ValueError("pack_w8 needs values in -127 … 127")
    groups = scales.shape[1]
    if groups > 1 and (block is None or block % 4 or -(-q.shape[1] // block) != groups):
        raise ValueError(f"pack_w8 needs the block, a multiple of 4, that cuts {q.shape[1]} columns into {groups}")
    order = column_order(q.shape[0]) if order is None else order
    depth = -(-q.shape[1] // 4) * 4 if block is None or groups == 1 else groups * block
    bytes_nk = np.full((len(order), depth), 128, dtype=np.uint8)
    bytes_nk[:, : q.shape[1]] = _take(q.view(np.uint8) ^ np.uint8(128), order, 128)
    weight = bytes_nk.reshape(-1, PANEL, depth // 4, 4).transpose(0, 2, 1, 3)
    packed_scales = _take(np.asarray(scales, np.float32), order, 0).astype(np.float32, copy=False)
    by_panel = packed_scales.reshape(-1, PANEL, groups).transpose(0, 2, 1)
    return PackedLinear(np.ascontiguousarray(weight), np.ascontiguousarray(by_panel))


def pack_w4(
    q: NDArray[np.uint8],
    scales: NDArray[np.float16],
    zero_points: NDArray[np.uint8] | None = None,
    order: NDArray[np.int64] | None = None,
) -> PackedLinear:
    """LinearW4's layout of q [N, K] (values 0 … 15) with scales and zero_points [N, ceil(K / block)].

    The block follows from the shapes: scales.shape[1] blocks cover K, the last one may be short.  Without
    zero_points the weight is scale * (q - 8).  Raises ValueError on shapes that do not fit.
    """
    if q.ndim != 2 or q.dtype != np.uint8 or scales.ndim != 2 or scales.shape[0] != q.shape[0]:
        raise ValueError(
            f"pack_w4 needs uint8 [N, K] and scales [N, blocks], got {q.dtype} {q.shape} and {scales.shape}"
        )
    if q.size and int(q.max()) > 15:
        raise ValueError("pack_w4 needs values in 0 … 15")
    if zero_points is not None and (zero_points.shape != scales.shape or int(zero_points.max(initial=0)) > 15):
        raise ValueError("pack_w4 needs zero_points of the scales' shape in 0 … 15")
    groups = scales.shape[1]
    block = block_size(q.shape[1], groups)
    order = column_order(q.shape[0]) if order is None else order
    # Padding must contribute nothing: its activations are zero and so are their sums, any q will do; 8 is clean.
    nibbles = np.full((len(order), groups * block), 8, dtype=np.uint8)
    nibbles[:, : q.shape[1]] = _take(q, order, 8)
    halves = nibbles.reshape(-1, PANEL, groups * block // 8, 2, 4)
    weight = (halves[:, :, :, 0] | (halves[:, :, :, 1] << np.uint8(4))).transpose(0, 2, 1, 3)

    def by_panel(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        return np.ascontiguousarray(_take(values, order, fill).reshape(-1, PANEL, groups).transpose(0, 2, 1))

    packed_zeros = None if zero_points is None else by_panel(zero_points, 8).astype(np.uint8, copy=False)
    packed_scales = by_panel(np.asarray(scales, np.float16), 0).astype(np.float16, copy=False)
    return PackedLinear(np.ascontiguousarray(weight), packed_scales, packed_zeros)


def pack_w5(q: NDArray[np.uint8], scales: NDArray[np.float16], order: NDArray[np.int64] | None = None) -> PackedLinear:
    """LinearW5's layout of q [N, K] (values 0 … 31, 16 stands for zero) with scales [N, ceil(K / 32)].

    32 of K of 16 columns are 320 bytes: four times [16 columns][4] bytes as LinearW4 has them, of the low four bits,
    then for each of these four the fifth bits: of the 64 low nibbles, then of the 64 high ones.

    Raises ValueError on shapes that do not fit.
    """
    if q.ndim != 2 or q.dtype != np.uint8 or scales.shape != (q.shape[0], -(-q.shape[1] // 32)):
        raise ValueError(f"pack_w5 needs uint8 [N, K] and scales [N, K/32], got {q.dtype} {q.shape} and {scales.shape}")
    if q.size and int(q.max()) > 31:
        raise ValueError("pack_w5 needs values in 0 … 31")
    groups = scales.shape[1]
    order = column_order(q.shape[0]) if order is None else order
    values = np.full((len(order), groups * 32), 16, dtype=np.uint8)  # padding stands for zero
    values[:, : q.shape[1]] = _take(q, order, 16)
    steps = values.reshape(-1, PANEL, groups, 4, 2, 4).transpose(
        0, 2, 3, 4, 1, 5
    )  # [panel, block, step, half, column, 4]
    low = steps & np.uint8(15)
    nibbles = (low[:, :, :, 0] | (low[:, :, :, 1] << np.uint8(4))).reshape(-1, groups, 256)
    fifth = np.packbits((steps >> np.uint8(4)).reshape(-1, groups, 512), axis=-1, bitorder="little")
    weight = np.concatenate([nibbles, fifth], axis=-1)
    packed_scales = _take(np.asarray(scales, np.float16), order, 0).astype(np.float16, copy=False)
    by_panel = packed_scales.reshape(-1, PANEL, groups).transpose(0, 2, 1)
    return PackedLinear(np.ascontiguousarray(weight), np.ascontiguousarray(by_panel))


def unpack_w5(weight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """q [Np, Kp] of what `pack_w5` made of it, in packed order of columns."""
    panels, groups = weight.shape[:2]
    nibbles = weight[:, :, :256].reshape(panels, groups, 4, PANEL, 4)
    halves = np.stack([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=3)  # [panel, block, step, half, column, 4]
    fifth = np.unpackbits(weight[:, :, 256:], axis=-1, bitorder="little").reshape(halves.shape)
    q = halves | (fifth << np.uint8(4))
    return np.ascontiguousarray(q.transpose(0, 4, 1, 2, 3, 5)).reshape(panels * PANEL, groups * 32)


def block_size(depth: int, groups: int) -> int:
    """The block (a multiple of 8) of which `groups` cover `depth` columns.

    Powers of two are preferred, as exporters use them: depth 100 in 2 groups is a block of 64.  Raises
    ValueError if no multiple of 8 gives that many groups.
    """
    candidates = [1 << p for p in range(3, 20)] + list(range(8, depth + 8, 8))
    for block in candidates:
        if -(-depth // block) == groups:
            return block
    raise ValueError(f"no block size (multiple of 8) cuts {depth} columns into {groups} blocks")
