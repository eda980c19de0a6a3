"""The scale search of `quantize_search` in C++, built at first use; about thirty times as fast as numpy."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.export.quantize.scheme import Parts, Scheme
from gog_edge.native import load_library

F32 = NDArray[np.float32]
SOURCE = Path(__file__).with_name("csrc") / "search_scale.cpp"
_FLAGS = ("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")  # what lets the loops be vectorised
_SYMMETRIC, _POSITIVE, _HALF = 1, 2, 4


@functools.lru_cache(maxsize=1)
def _function() -> Any:
    library = load_library("search_scale", [SOURCE], flags=_FLAGS, fallback="numpy searches scales, much slower")
    if library is None:
        return None
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    return library.function(
        "gog_search_scale", integer, pointer, long, long, long, integer, integer, pointer, integer, pointer, integer,
        pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip


def search(
    weight: F32, scheme: Scheme, factors: tuple[float, ...], flips: tuple[float, ...], strength: F32 | None
) -> Parts | None:
    """`quantize_search.search_mse` on weight [out, in]; None where there is no compiler.

    Args:
        factors, flips: of the covering scale, and of the one with the other sign.
        strength: [in], weights of the squared errors.
    """
    function = _function()
    if function is None:
        return None
    weight = np.ascontiguousarray(weight, np.float32)
    rows, inputs = weight.shape
    shrink, flipped = np.array(factors, np.float32), np.array(flips, np.float32)
    q = np.empty((rows, inputs), np.int8)
    scale = np.empty((rows, scheme.blocks(inputs)), np.float32)
    zero = None if scheme.symmetric else np.empty(scale.shape, np.int8)
    strong = None if strength is None else np.ascontiguousarray(strength, np.float32)
    flags = _SYMMETRIC * scheme.symmetric + _POSITIVE * scheme.positive + _HALF * (scheme.scale_dtype == "float16")
    code = function(
        weight.ctypes.data, rows, inputs, scheme.width(inputs), scheme.bits, flags,
        shrink.ctypes.data, len(shrink), flipped.ctypes.data, len(flipped),
        None if strong is None else strong.ctypes.data,
        q.ctypes.data, scale.ctypes.data, None if zero is None else zero.ctypes.data, _threads(),
    )  # fmt: skip
    if code != 0:
        raise MemoryError(f"no memory to quantise a weight of {rows} x {inputs}")
    return q, scale, zero


def _threads() -> int:
    return min(usable_threads(), 8)
