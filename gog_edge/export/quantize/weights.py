"""Quantising a weight by a scheme: whichever method the scheme names, a slice of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.export.quantize.gptq import compensate
from gog_edge.export.quantize.scheme import Parts, QuantizedWeight, Scheme, round_to_nearest
from gog_edge.export.quantize.search import search_hqq, search_mse
from gog_edge.native.rotation import rotate

_ROWS_BYTES = 1 << 26  # float32 bytes quantised at once: bounds the temporaries


def quantize(weight: NDArray[np.float32], scheme: Scheme, stats: Any = None) -> QuantizedWeight:
    """Quantise one weight [out, in].

    `stats`: calibration of this tensor (`gog_edge.export.quantize.calibration.LayerStats`); method "gptq" needs it.

    Raises:
        ValueError: not a matrix, not finite, or the method needs calibration that is missing.
    """
    if weight.ndim != 2 or not weight.size:
        raise ValueError(f"a weight to quantise must be a matrix, this one has shape {list(weight.shape)}")
    rows = weight.shape[0]
    return quantize_rows(lambda start, stop: weight[start:stop], (rows, weight.shape[1]), scheme, stats)


def quantize_rows(
    read: Callable[[int, int], NDArray[np.float32]],
    shape: tuple[int, int],
    scheme: Scheme,
    stats: Any = None,
) -> QuantizedWeight:
    """Quantise a weight that is read in row ranges (`checkpoint.read_rows`): only a slice is ever in float32.

    Rows are independent in every method, so the result is that of `quantize` on the whole weight.
    """
    out, inputs = shape
    step = max(1, _ROWS_BYTES // (4 * inputs))
    dtype: Any = {16: np.float16, 32: np.float32}.get(scheme.bits, np.int8)
    q = np.empty((out, inputs), dtype)
    blocks = scheme.blocks(inputs)
    scales = None if scheme.is_float else np.empty((out, blocks), np.float32)
    zeros = None if scheme.is_float or scheme.symmetric else np.empty((out, blocks), np.int8)
    turned = scheme.turned(inputs)
    run = _method(scheme, stats.turned(turned) if turned and stats is not None else stats)
    for start in range(0, out, step):
        stop = min(out, start + step)
        weight = np.ascontiguousarray(read(start, stop), np.float32)
        if not np.isfinite(weight.sum(dtype=np.float64)):
            raise ValueError("a weight to quantise holds NaN or infinity")
        if scheme.is_float:
            with np.errstate(over="ignore"):
                q[start:stop] = weight
            continue
        part, scale, zero = run(rotate(weight, turned) if turned else weight, scheme)
        q[start:stop] = part
        if scales is not None:
            scales[start:stop] = scale
        if zeros is not None and zero is not None:
            zeros[start:stop] = zero
    if scheme.bits == 16 and not np.isfinite(q).all():
        raise ValueError("a weight has values beyond the range of float16; use another precision")
    return QuantizedWeight(q, scales, zeros, scheme.width(inputs), scheme)


def _method(scheme: Scheme, stats: Any) -> Callable[[NDArray[np.float32], Scheme], Parts]:
    """The function that quantises rows."""
    if scheme.is_float or scheme.method == "rtn":
        return round_to_nearest
    if scheme.method == "gptq":
        if stats is None:
            raise ValueError("method gptq needs calibration: none was given for this weight")
        factors = stats.factor
        return lambda weight, scheme: compensate(weight, scheme, factors, stats.mean_square)
    return search_hqq if scheme.method == "hqq" else search_mse
