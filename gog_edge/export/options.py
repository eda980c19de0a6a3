"""Everything a user may decide about an export, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gog_edge.errors import UsageError
from gog_edge.export.quantize import Recipe
from gog_edge.manifest import Flavour, PrecisionName, Target

PRECISIONS: tuple[PrecisionName, ...] = ("int4", "int8", "fp16", "fp32")
TARGETS: tuple[Target, ...] = ("cpu", "cuda", "tensorrt-rtx", "tensorrt")
KvDType = Literal["float32", "float16"]
Compute = Literal["float32", "float16"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export; None means: what suits the target.

    `flavour`: ort for cpu and cuda, standard (opset only) for TensorRT; `standard` can be asked for on any target.
    `recipe`: scheme of every tensor class; default: `Recipe.for_precision(precision)`.
    `max_context`: tokens, lowers the checkpoint's own limit. `min_pixels`, `max_pixels`: of a resized image.
    `dialect`: a shipped name or a path of a TOML file that is copied into the bundle.
    `allow_missing_tokenizer`: for checkpoints that serve measurements only; such a bundle can't read text.
    """

    precision: PrecisionName = "int4"
    target: Target = "cpu"
    flavour: Flavour | None = None
    recipe: Recipe | None = None
    compute: Compute | None = None
    kv_dtype: KvDType | None = None
    name: str | None = None
    dialect: str = "gog"
    max_context: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    allow_missing_tokenizer: bool = False


@dataclass(frozen=True)
class Resolved:
    """Options without gaps."""

    flavour: Flavour
    compute: Compute
    kv_dtype: KvDType
    recipe: Recipe


def resolve(options: ExportOptions) -> Resolved:
    """Fill in what follows from the target.

    Raises:
        UsageError: options that contradict each other or are unknown.
    """
    if options.precision not in PRECISIONS:
        raise UsageError(f"precision {options.precision!r} is unknown: choose {', '.join(PRECISIONS)}")
    if options.target not in TARGETS:
        raise UsageError(f"target {options.target!r} is unknown: choose {', '.join(TARGETS)}")
    tensorrt = options.target in ("tensorrt", "tensorrt-rtx")
    flavour = options.flavour or ("standard" if tensorrt else "ort")
    if tensorrt and flavour != "standard":
        raise UsageError(f"target {options.target} needs flavour standard, not {flavour}")
    on_gpu = options.target != "cpu"
    half = on_gpu and options.precision != "fp32"
    compute: Compute = options.compute or ("float16" if half else "float32")
    if options.target == "cpu" and compute == "float16" and flavour == "ort":
        raise UsageError("float16 arithmetic is slow or missing on CPUs: use compute float32 for target cpu")
    kv_dtype: KvDType = options.kv_dtype or compute
    if options.max_context is not None and options.max_context < 1:
        raise UsageError(f"max_context must be at least 1, not {options.max_context}")
    recipe = options.recipe or Recipe.for_precision(options.precision)
    if flavour == "ort" and on_gpu:
        recipe = _blocked(recipe)
    return Resolved(flavour, compute, kv_dtype, recipe)


def _blocked(recipe: Recipe) -> Recipe:
    """int8 weights per output need DynamicQuantizeMatMul, which CUDA lacks: blocks of 128 for MatMulNBits instead."""
    roles = ("head", "attention", "mlp", "down_proj", "vision", "merger")
    schemes = {role: getattr(recipe, role) for role in roles}
    return replace(
        recipe, **{r: replace(s, block=128) for r, s in schemes.items() if not s.is_float and not s.block}
    )
