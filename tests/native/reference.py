"""The native operators in numpy: the same arithmetic, slowly.  Tests hold the kernels to these functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.native.packing import PANEL, PackedLinear, unpack_w5
from gog_edge.native.rotation import rotate as turn

Array = NDArray[np.float32]


def normalize(x: Array, norm: str, weight: Array | None, bias: Array | None, epsilon: float) -> Array:
    """RMS or layer norm over the last axis, in f32."""
    if norm == "none":
        return np.asarray(x, np.float32)
    centred = x - x.mean(axis=-1, keepdims=True) if norm == "layer" else x
    y = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    y = y if weight is None else y * weight
    return np.asarray(y if bias is None else y + bias, np.float32)


def quantize_rows(x: Array, block: int) -> tuple[NDArray[np.int32], Array]:
    """int8 values [M, groups, block] (as int32) and scales [M, groups]; x [M, K] is padded with zeros."""
    groups = -(-x.shape[1] // block)
    padded = np.zeros((x.shape[0], groups * block), dtype=np.float32)
    padded[:, : x.shape[1]] = x
    grouped = padded.reshape(x.shape[0], groups, block)
    peak = np.abs(grouped).max(axis=2)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    return np.rint(grouped * inverse[:, :, None]).astype(np.int32), (peak / np.float32(127)).astype(np.float32)


def activate(x: Array, activation: str) -> Array:
    """The elementwise activations, in f64 inside."""
    v = x.astype(np.float64)
    if activation == "gelu_tanh":
        v = 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    elif activation == "gelu":
        v = 0.5 * v * (1 + np.vectorize(math.erf, otypes=[np.float64])(v / math.sqrt(2)))
    elif activation == "silu":
        v = v / (1 + np.exp(-v))
    elif activation != "none":
        raise ValueError(f"unknown activation {activation!r}")
    return v.astype(np.float32)


WIDE_GROUP = 256
"""As kWideGroup of widen.h."""


def widen(q: NDArray[np.int32], scales: Array, largest: int) -> tuple[NDArray[np.int32], Array]:
    """LinearW4's and LinearW5's weights for rows that are read: centred q [N, blocks, block] and scales [N, blocks] to
    int8 groups.

    `largest`: magnitude of q that is meant to fit. Blocks of up to 256 of K (a divisor of K) share the scale that just
    covers them.  Returns the input where there is no such group.
    """
    blocks, block = q.shape[1], q.shape[2]
    fits = [n for n in range(WIDE_GROUP // block, 0, -1) if blocks % n == 0 and n * block >= 64]
    if not fits:
        return q, scales
    grouped = scales.reshape(len(scales), -1, fits[0])
    peak = np.abs(grouped).max(axis=2)
    wide = (peak * np.float32(largest / 127)).astype(np.float32)
    inverse = np.divide(np.float32(2048), wide, out=np.zeros_like(wide), where=wide > 0)
    ratio = np.rint(grouped * inverse[:, :, None]).astype(np.int64).reshape(len(scales), blocks, 1)
    values = (q.astype(np.int64) * 16 * ratio + (1 << 14)) >> 15
    return values.reshape(len(q), wide.shape[1], -1).astype(np.int32), wide


def linear(
    x: Array,
    packed: PackedLinear,
    columns: int,
    *,
    bits: int,
    activation: str = "none",
    bias: Array | None = None,
    residual: Array | None = None,
    norm: str = "none",
    norm_weight: Array | None = None,
    norm_bias: Array | None = None,
    epsilon: float = 1e-6,
    exact: bool = False,
    rotation: int = 0,
) -> Array:
    """LinearW8, LinearW5 and LinearW4 (`bits`) of x [M, K]; `bias` is in packed column order.

    `exact`: as the operator's attribute, and as rows outside of `prefill_rows` are computed. `rotation`: likewise.
    """
    x = normalize(np.asarray(x, np.float32), norm, norm_weight, norm_bias, epsilon)
    x = turn(x, rotation)
    if bits == 8:
        q8, scales = unpack_w8(packed)
        centred = q8.astype(np.int32).reshape(len(q8), scales.shape[1], -1)
    elif bits == 5:
        q5 = unpack_w5(packed.weight)
        scales = packed.scales.transpose(0, 2, 1).reshape(len(q5), -1).astype(np.float32)
        centred = q5.astype(np.int32).reshape(len(q5), scales.shape[1], -1) - 16
        if not exact:
            centred, scales = widen(centred, scales, 16)
    else:
        q4, half_scales, zeros = unpack_w4(packed)
        scales = half_scales.astype(np.float32)
        grouped = q4.astype(np.int32).reshape(q4.shape[0], scales.shape[1], -1)
        centred = grouped - (8 if zeros is None else zeros.astype(np.int32)[:, :, None])
        if not exact:
            centred, scales = widen(centred, scales, 8 if zeros is None else 15)
    rows, row_scales = quantize_rows(x, centred.shape[2])
    sums = np.einsum("mgk,ngk->mgn", rows.astype(np.float64), centred.astype(np.float64))  # exact below 2^53
    y = np.einsum("mgn,mg,ng->mn", sums, row_scales.astype(np.float64), scales.astype(np.float64))
    y = (y if bias is None else y + bias).astype(np.float32)
    if activation == "silu_mul":
        pairs = y.reshape(len(y), -1, 2, PANEL)
        y = (activate(pairs[:, :, 0], "silu") * pairs[:, :, 1]).reshape(len(y), -1)
    else:
        y = activate(y, activation)
    y = y[:, :columns]
    return np.asarray(y if residual is None else y + residual, np.float32)


def rotate(x: NDArray[Any], cos: Array, sin: Array) -> NDArray[Any]:
    """Rotate-half rotary of x [n, heads, hd] by cos/sin [n, hd/2]."""
    a, b = np.split(x, 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis; rows of -inf only are not allowed."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float64)


def vision_attention(
    qkv: Array,
    cos: Array,
    sin: Array,
    heads: int,
    gather: NDArray[np.int64] | None = None,
    mask: NDArray[np.int32] | None = None,
    scale: float | None = None,
) -> Array:
    """VisionAttention of qkv [n, 3 * heads * hd], in f64."""
    n = qkv.shape[0]
    q, k, v = np.split(qkv.astype(np.float64).reshape(n, 3 * heads, -1), 3, axis=1)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    groups = [np.arange(n)] if gather is None or mask is None else [g[m != 0] for g, m in zip(gather, mask)]
    y = np.zeros_like(q)
    for rows in groups:
        scores = np.einsum("qhd,khd->hqk", q[rows], k[rows]) * factor
        y[rows] = np.einsum("hqk,khd->qhd", softmax(scores), v[rows])
    return y.reshape(n, -1).astype(np.float32)


def quantize_cache_row(x: Array) -> tuple[NDArray[np.int8], Array]:
    """int8 rows and their scales [..] of x [.., hd], as the int8 KV cache stores them."""
    peak = np.abs(x).max(axis=-1)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    return np.rint(x * inverse[..., None]).astype(np.int8), (peak / np.float32(127)).astype(np.float32)


def decoder_attention(
    qkv: Array,
    cos: Array,
    sin: Array,
    past_keys: Array,
    past_values: Array,
    heads: int,
    *,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    scale: float | None = None,
    epsilon: float = 1e-6,
) -> tuple[Array, Array, Array]:
    """DecoderAttention of qkv [s, (heads + 2 kv) * hd] after past_keys/values [kv, past, hd] (f32), in f64.

    Returns y [s, heads * hd] and the new keys and values [kv, s, hd] before they are stored.  The caller rounds
    past and new rows to the cache's type; new rows are attended as stored, so round-trip them and pass `past`
    accordingly (see the tests).
    """
    kv, past, hd = past_keys.shape
    s = qkv.shape[0]
    rows = qkv.astype(np.float32).reshape(s, heads + 2 * kv, hd)
    q, k, v = rows[:, :heads], rows[:, heads : heads + kv], rows[:, heads + kv :]
    if q_norm is not None:
        q = normalize(q, "rms", q_norm, None, epsilon)
    if k_norm is not None:
        k = normalize(k, "rms", k_norm, None, epsilon)
    q, k = rotate(q, cos, sin).astype(np.float32), rotate(k, cos, sin).astype(np.float32)
    new_keys, new_values = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    keys = np.concatenate([past_keys, new_keys], axis=1).astype(np.float64)
    values = np.concatenate([past_values, new_values], axis=1).astype(np.float64)
    factor = 1 / math.sqrt(hd) if scale is None else scale
    grouped = q.reshape(s, kv, heads // kv, hd).astype(np.float64)
    scores = np.einsum("skgd,ktd->kgst", grouped, keys) * factor
    hidden = np.arange(past + s)[None, :] > past + np.arange(s)[:, None]
    scores = np.where(hidden, -np.inf, scores)
    y = np.einsum("kgst,ktd->skgd", softmax(scores), values).reshape(s, heads * hd)
    return y.astype(np.float32), np.asarray(new_keys, np.float32), np.asarray(new_values, np.float32)


def unpack_w8(packed: PackedLinear) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """q [Np, Kp] and scales [Np, groups] in packed column order (inverse of pack_w8, padding included)."""
    panels, steps, _, _ = packed.weight.shape
    flat = packed.weight.transpose(0, 2, 1, 3).reshape(panels * PANEL, steps * 4)
    q = np.ascontiguousarray(flat ^ np.uint8(128)).view(np.int8)
    scales = packed.scales.transpose(0, 2, 1).reshape(len(q), -1)
    return q, scales.astype(np.float32)


def unpack_w4(
    packed: PackedLinear,
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8] | None]:
    """q [Np, Kp], scales and zero points [Np, blocks] in packed column order (inverse of pack_w4)."""
    panels, steps, _, _ = packed.weight.shape
    halves = np.stack([packed.weight & np.uint8(15), packed.weight >> np.uint8(4)], axis=3)
    q = halves.transpose(0, 2, 1, 3, 4).reshape(panels * PANEL, steps * 8)

    def by_column(values: NDArray[np.generic]) -> NDArray[np.generic]:
        return values.transpose(0, 2, 1).reshape(panels * PANEL, -1)

    zeros = None if packed.zero_points is None else by_column(packed.zero_points).astype(np.uint8)
    return q, by_column(packed.scales).astype(np.float16), zeros
