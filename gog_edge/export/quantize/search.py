"""Calibration-free quantisation that looks for a better scale than the covering one: `mse`, `hqq` and `grid`.

Both work block by block on weights alone (optionally weighted by how strong each input is), so they stream like RTN.
`mse`: several clipped ranges are tried; for each the scale is refitted by least squares to the integers it leads to
(the closed form min_s sum i (w - s q)^2 = sum i w q / sum i q^2, as in llama.cpp's k-quants), the best one stays.
`grid`: the same search over wider scales, for weights that were quantised before (AWQ, GPTQ checkpoints): it finds
their steps again, so that nothing is lost a second time where blocks divide the old groups.
`hqq`: half-quadratic splitting with a shrinkage operator for an l_p norm with p < 1 that lets outliers keep their
error (Badri & Shaji 2023, "Half-Quadratic Quantization"); here the zero point is rounded at the end, as it is stored
as an integer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.quantize.scheme import (
    Parts,
    Scheme,
    cover,
    encode,
    from_blocks,
    rounded_scale,
    to_blocks,
    zero_point,
)

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
_SHRINK = {4: (1.0, 0.9, 0.8), 5: (1.0, 0.95, 0.9), 8: (1.0, 0.98)}
_VALUES = 1 << 21  # values searched at once: stays in the cache


def search_mse(weight: F32, scheme: Scheme, importance: F32 | None = None) -> Parts:
    """The scale and zero point of every block with the least (weighted) squared error among those tried.

    Args:
        importance: [in], mean square of each input; None: all count the same.
    """
    from gog_edge.export.quantize.native import search

    strength = None if importance is None else _strength(importance)
    found = search(weight, scheme, _factors(scheme), _flips(scheme), strength)
    return found if found is not None else search_mse_numpy(weight, scheme, strength)


def search_mse_numpy(weight: F32, scheme: Scheme, strength: F32 | None = None) -> Parts:
    """What csrc/search_scale.cpp computes, in numpy: its reference, and the way without a compiler."""
    return _by_rows(weight, lambda part: _search(part, scheme, strength))


def _search(weight: F32, scheme: Scheme, strength: F32 | None) -> Parts:
    blocks = to_blocks(weight, scheme)
    counted = _counted(strength, weight.shape[1], scheme)
    best_q, best_scale, best_zero, best_error = None, None, None, None
    for scale, zero in _candidates(blocks, scheme):
        q = encode(blocks, scale, zero, scheme)
        scale = _refit(blocks, q, zero, scale, counted, scheme)
        q = encode(blocks, scale, zero, scheme)
        error = _error(blocks, q, scale, zero, counted)
        if best_q is None or best_scale is None or best_error is None:
            best_q, best_scale, best_zero, best_error = q, scale, zero, error
            continue
        better = error < best_error
        best_q[better] = q[better]
        best_scale[better] = scale[better]
        best_error[better] = error[better]
        if zero is not None and best_zero is not None:
            best_zero[better] = zero[better]
    if best_q is None or best_scale is None:
        raise ValueError(f"nothing to search for {scheme.bits} bits")
    return from_blocks(best_q, weight.shape[1]), best_scale, best_zero


def _candidates(blocks: F32, scheme: Scheme) -> list[tuple[F32, I8 | None]]:
    found: list[tuple[F32, I8 | None]] = []
    if scheme.symmetric:
        scale, _ = cover(blocks, scheme)
        factors = (*_factors(scheme), *(-f for f in _flips(scheme)))
        return [(rounded_scale(scale * np.float32(f), scheme), None) for f in factors]
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    for f in _factors(scheme):
        scale = rounded_scale((high - low) * np.float32(f / (scheme.high - scheme.low)), scheme)
        found.append((scale, zero_point(low * np.float32(f), scale, scheme)))
    return found


def _factors(scheme: Scheme) -> tuple[float, ...]:
    """Of the covering scale. Method `grid` looks for the steps that the values already lie on: a block that spans
    only m of them needs a wider scale than the covering one, after which the least-squares fit is exact."""
    if scheme.method != "grid":
        return _SHRINK[scheme.bits]
    levels = -scheme.low if scheme.symmetric else scheme.high - scheme.low
    spans = range(levels, 0, -1) if scheme.bits == 4 else range(levels, levels // 2, -4)
    return tuple(levels / m for m in spans)


def _flips(scheme: Scheme) -> tuple[float, ...]:
    """The other sign gives the other side the sixteenth level: the range is 7 steps there instead of 8."""
    return (0.95 * 8 / 7,) if scheme.symmetric and scheme.bits == 4 and not scheme.positive else ()


def _refit(blocks: F32, q: I8, zero: I8 | None, scale: F32, strength: F32 | None, scheme: Scheme) -> F32:
    """Least-squares scale for fixed integers; where they are all zero the old one stays."""
    steps = q.astype(np.float32)
    if zero is not None:
        steps -= zero[..., None]
    weighted = steps if strength is None else steps * strength
    top = np.einsum("rbk,rbk->rb", weighted, blocks)
    bottom = np.einsum("rbk,rbk->rb", weighted, steps)
    fitted = np.where(bottom > 0, top / np.maximum(bottom, np.float32(1e-30)), scale).astype(np.float32)
    if scheme.positive or not scheme.symmetric:
        fitted = np.where(fitted > 0, fitted, scale)
    fitted = np.where(fitted == 0, scale, fitted)
    return rounded_scale(fitted, scheme)


def _error(blocks: F32, q: I8, scale: F32, zero: I8 | None, strength: F32 | None) -> F32:
    values = q.astype(np.float32)
    if zero is not None:
        values -= zero[..., None]
    values *= scale[..., None]
    values -= blocks
    weighted = values if strength is None else values * strength
    error: F32 = np.einsum("rbk,rbk->rb", weighted, values)
    return error


def _strength(importance: F32) -> F32:
    """Weights of the squared errors: mean 1, never 0."""
    strength: F32 = np.maximum(importance / max(float(importance.mean()), 1e-30), 1e-8).astype(np.float32)
    return strength


def _counted(strength: F32 | None, inputs: int, scheme: Scheme) -> F32 | None:
    """[1, blocks, width] weights of the squared errors with the padding of the last block at 0."""
    width, count = scheme.width(inputs), scheme.blocks(inputs)
    if strength is None and width * count == inputs:
        return None
    padded = np.zeros(width * count, np.float32)
    padded[:inputs] = 1 if strength is None else strength
    return padded.reshape(1, count, width)


def search_hqq(
    weight: F32, scheme: Scheme, steps: int = 20, p: float = 0.7, beta: float = 10.0, kappa: float = 1.01
) -> Parts:
    """Half-quadratic optimisation of the zero point (asymmetric) or the scale (symmetric).

    `p`, `beta`, `kappa`: norm, penalty and its growth a step, as in the paper.
    """
    return _by_rows(weight, lambda part: _hqq(part, scheme, steps, p, beta, kappa))


def _hqq(weight: F32, scheme: Scheme, steps: int, p: float, beta: float, kappa: float) -> Parts:
    blocks = to_blocks(weight, scheme)
    scale, zero = cover(blocks, scheme)
    size = np.abs(blocks).mean() + np.float32(1e-12)  # the penalty is meant for weights of about unit size
    shift = None if zero is None else zero.astype(np.float32)
    best, best_error = (scale, zero), None
    for _ in range(steps):
        q = _levels(blocks, scale, shift, scheme)
        kept = q if shift is None else q - shift[..., None]
        gap = (blocks - kept * scale[..., None]) / size
        magnitude = np.abs(gap)
        outlier = np.sign(gap) * np.maximum(magnitude - np.power(magnitude + 1e-8, p - 1) / beta, 0) * size
        target = blocks - outlier
        if shift is not None:
            shift = (q - target / scale[..., None]).mean(-1)
            rounded = np.clip(np.rint(shift), scheme.low, scheme.high).astype(np.int8)
            tried = (scale, rounded)
        else:
            bottom = np.einsum("rbk,rbk->rb", q, q)
            fitted = np.einsum("rbk,rbk->rb", q, target) / np.maximum(bottom, np.float32(1e-30))
            ok = (bottom > 0) & (fitted * scale > 0)
            scale = rounded_scale(np.where(ok, fitted, scale).astype(np.float32), scheme)
            tried = (scale, None)
        error = float(np.power(np.abs(_residual(blocks, *tried, scheme)) + 1e-12, p).mean())
        if best_error is not None and error >= best_error:
            break
        best, best_error = tried, error
        beta *= kappa
    q8 = encode(blocks, best[0], best[1], scheme)
    return from_blocks(q8, weight.shape[1]), best[0], best[1]


def _levels(blocks: F32, scale: F32, shift: F32 | None, scheme: Scheme) -> F32:
    levels = np.rint(blocks / scale[..., None] + (0 if shift is None else shift[..., None]))
    low = -127 if scheme.symmetric and scheme.bits == 8 else scheme.low
    clipped: F32 = np.clip(levels, low, scheme.high).astype(np.float32)
    return clipped


def _residual(blocks: F32, scale: F32, zero: I8 | None, scheme: Scheme) -> F32:
    values = encode(blocks, scale, zero, scheme).astype(np.float32)
    if zero is not None:
        values -= zero[..., None]
    residual: F32 = blocks - values * scale[..., None]
    return residual


def _by_rows(weight: F32, run: Callable[[F32], Parts]) -> Parts:
    step = max(1, _VALUES // weight.shape[1])
    parts = [run(weight[at : at + step]) for at in range(0, len(weight), step)]
    if len(parts) == 1:
        return parts[0]
    zeros = [p[2] for p in parts if p[2] is not None]
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate(zeros) if zeros else None,
    )
