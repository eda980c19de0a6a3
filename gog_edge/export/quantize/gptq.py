"""Error-compensated quantisation with calibration: GPTQ (Frantar et al. 2022, arXiv 2210.17323).

Inputs are quantised one by one, the most active first; the error of each is spread over the inputs still to come, by
the inverse of the Hessian of the layer's output error, H = E[x x^T]. Scales and zero points are found beforehand from
the untouched weight ("static groups"), so any order fits blocks along the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import UsageError
from gog_edge.export.quantize.scheme import Parts, Scheme
from gog_edge.export.quantize.search import search_mse

F32 = NDArray[np.float32]
Factor = tuple[NDArray[np.int64], F32]  # of `inverse_factor`
DAMPING = 0.1  # of the Hessian's mean diagonal, added to it: what calibration did not see counts, too
_LAZY = 32  # inputs between two updates of the rest


def inverse_factor(hessian: F32, damping: float = DAMPING) -> Factor:
    """The order of the inputs and the upper factor U of the inverse Hessian in that order (H^-1 = U^T U).

    Args:
        hessian: [in, in], E[x x^T] or a multiple of it.

    Raises:
        ValueError: not square. UsageError: not positive definite even with damping.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"a Hessian must be square, this one is {list(hessian.shape)}")
    h = hessian.astype(np.float64)
    diagonal = np.diagonal(h).copy()
    h[diagonal <= 0, diagonal <= 0] = 1.0  # inputs that were never active: no error, no compensation
    order = np.argsort(-diagonal, kind="stable")
    h = h[np.ix_(order, order)]
    mean = float(np.diagonal(h).mean())
    for factor in (1.0, 10.0, 100.0):
        damped = h + np.eye(len(h)) * (damping * factor * mean)
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        upper = _inverse(np.asarray(lower[::-1, ::-1], np.float64))  # H = V V^T with V upper, so H^-1 = (V^-1)^T V^-1
        if np.isfinite(upper).all():
            return order, np.ascontiguousarray(upper, np.float32)
    raise UsageError("the calibration Hessian is not positive definite: calibrate with more tokens")


def _inverse(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix, by halves."""
    count = len(upper)
    if count <= 64:
        return np.triu(np.linalg.inv(upper))
    half = count // 2
    first, last = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    result = np.zeros_like(upper)
    result[:half, :half], result[half:, half:] = first, last
    result[:half, half:] = -first @ upper[:half, half:] @ last
    return result


def compensate(weight: F32, scheme: Scheme, factors: Sequence[Factor], importance: F32) -> Parts:
    """q, scales and zero points of `weight` [out, in] by GPTQ; see `inverse_factor`.

    Args:
        factors: of the parts that the inputs are cut into.
        importance: [in], mean square of each input, for the scales.
    """
    _, scale, zero = search_mse(weight, scheme, importance)
    block_of = np.arange(weight.shape[1]) // scheme.width(weight.shape[1])
    q, start = np.empty(weight.shape, np.int8), 0
    for order, upper in factors:
        stop = start + len(order)
        q[:, start:stop] = _compensate(weight[:, start:stop], scheme, order, upper, block_of[start:stop], (scale, zero))
        start = stop
    return q, scale, zero


def _compensate(
    weight: F32,
    scheme: Scheme,
    order: NDArray[np.int64],
    upper: F32,
    block_of: NDArray[np.int64],
    steps: tuple[F32, NDArray[np.int8] | None],
) -> NDArray[np.int8]:
    """q of a part of the inputs; `block_of` says which scale and zero point of `steps` each of them has."""
    scale, zero = steps
    out, inputs = weight.shape
    block_of = block_of[order]
    zeros = None if zero is None else zero.astype(np.float32)
    low = -127 if scheme.symmetric and scheme.bits == 8 else scheme.low
    work = np.ascontiguousarray(weight[:, order].T)  # [in, out]: one input's weights lie together
    q = np.empty((inputs, out), np.int8)
    for start in range(0, inputs, _LAZY):
        stop = min(start + _LAZY, inputs)
        errors = np.empty((stop - start, out), np.float32)
        for i in range(start, stop):
            s = scale[:, block_of[i]]
            z = np.float32(0) if zeros is None else zeros[:, block_of[i]]
            levels = np.clip(np.rint(work[i] / s + z), low, scheme.high)
            q[i] = levels.astype(np.int8)
            error = (work[i] - (levels - z) * s) / upper[i, i]
            errors[i - start] = error
            work[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], error)
        work[stop:] -= upper[start:stop, stop:].T @ errors
    result = np.empty((out, inputs), np.int8)
    result[:, order] = q.T
    return result
