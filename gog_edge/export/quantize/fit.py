"""Fit a recipe to what a target's operators can compute, so that the manifest says what is really stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme
from gog_edge.families.target import TensorClass

ROLES: tuple[TensorClass, ...] = ("head", "attention", "attention_out", "mlp", "down_proj", "vision", "merger")
Change = Callable[[Scheme], Scheme]


def fit(recipe: Recipe, change: Change) -> Recipe:
    """Every integer scheme of the linear layers (overrides too) through `change`."""
    schemes: dict[str, Any] = {role: _changed(recipe.scheme(role), change) for role in ROLES}
    schemes["overrides"] = {name: _changed(scheme, change) for name, scheme in recipe.overrides.items()}
    return replace(recipe, **schemes)


def for_portable(scheme: Scheme) -> Scheme:
    """DequantizeLinear as TensorRT takes it: symmetric, positive scales; int8 per output, int4 in blocks."""
    block = scheme.block if scheme.bits == 4 else 0
    return replace(scheme, symmetric=True, positive=True, block=block, even=False, rotation=0)


def for_native(scheme: Scheme) -> Scheme:
    """LinearW8: symmetric, even blocks; LinearW5, LinearW4: blocks with float16 scales, of 32 at 5 bits."""
    if scheme.bits == 8:
        return replace(scheme, symmetric=True, even=True, scale_dtype="float32")
    if scheme.bits == 5:
        return replace(scheme, symmetric=True, block=32, scale_dtype="float16")
    return replace(scheme, block=scheme.block or 128, scale_dtype="float16")


def for_ort(scheme: Scheme) -> Scheme:
    """MatMulNBits: float32 scales and blocks of a power of two; DynamicQuantizeMatMul: int8, one scale per output.

    Blocks of 8 bits are 128 long: MatMulNBits is 1.6 times as fast as with 32. Nothing is turned, as stock operators
    round the activations themselves; a row that had one scale because it was turned gets blocks.
    """
    scheme = replace(scheme, even=False, rotation=0, block=scheme.block or (128 if scheme.rotation else 0))
    if scheme.bits == 8 and not scheme.block:
        return replace(scheme, symmetric=True, scale_dtype="float32")
    block = 1 << (max(scheme.block or 128, 16).bit_length() - 1)  # the power of two below
    block = 128 if scheme.bits == 8 else min(max(block, 16), 256)
    return replace(scheme, block=block, scale_dtype="float32")


def for_cuda(scheme: Scheme) -> Scheme:
    """MatMulNBits only: DynamicQuantizeMatMul has no CUDA kernel; scales are float16 like the activations."""
    stock = for_ort(replace(scheme, block=scheme.block or 128))
    return replace(stock, scale_dtype="float16")


def _changed(scheme: Scheme, change: Change) -> Scheme:
    return scheme if scheme.is_float else change(scheme)
