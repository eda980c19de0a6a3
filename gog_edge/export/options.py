"""Everything a user may decide about an export, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gog_edge.errors import UsageError
from gog_edge.export.quantize.fit import Change, fit, for_cuda, for_native, for_ort, for_portable
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.families.target import TensorClass
from gog_edge.manifest import Backend, PrecisionName

PRECISIONS: tuple[PrecisionName, ...] = ("int4", "int5", "int8", "fp16", "fp32")
QUANTISED: tuple[PrecisionName, ...] = ("int4", "int5", "int8")
KvDType = Literal["float32", "float16", "int8"]
Compute = Literal["float32", "float16"]
VisionAttention = Literal["bfloat16", "int8", "float32"]
VISION_ATTENTION: tuple[VisionAttention, ...] = ("bfloat16", "int8", "float32")


@dataclass(frozen=True)
class BackendRules:
    """What a backend's operators can do. `fit`: makes a scheme one that they know. `compute`: types they multiply
    matrices in, the usual one first. `kv_dtype`: types of the KV cache that they read. `recurrent`, `experts`: whether
    they have linear attention, and mixtures of experts."""

    fit: Change
    compute: tuple[Compute, ...]
    kv_dtype: tuple[KvDType, ...]
    recurrent: bool = True
    experts: bool = True


_FLOATS: tuple[KvDType, ...] = ("float32", "float16")
_GPU = BackendRules(for_portable, ("float16", "float32"), _FLOATS, recurrent=False, experts=False)
BACKENDS: dict[Backend, BackendRules] = {
    "native": BackendRules(for_native, ("float32",), ("float16", "int8")),
    "ort": BackendRules(for_ort, ("float32",), _FLOATS),
    "cuda": replace(_GPU, fit=for_cuda),
    "tensorrt": _GPU,
    "tensorrt-rtx": _GPU,
    "openvino": BackendRules(for_portable, ("float32", "float16"), _FLOATS),
    "portable": BackendRules(for_portable, ("float32", "float16"), _FLOATS),
}


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export; None means: what suits the backend.

    `backend`: what the graphs are made of and run on (`gog_edge.manifest.Backend`).
    `vision_attention`: arithmetic of the vision tower's attention, backend native only (docs/graphs.md has costs).
    `exact_int4`: int4 and int5 layers of backend native keep every block's own scale in prefill, too, instead of
    widening blocks to int8 groups: prefill is a quarter slower.
    `recipe`: scheme of every tensor class; default: `Recipe.for_precision(precision)`.
    `int8`: classes of the decoder's layers that an int4 export keeps at 8 bits (docs/quantization.md: attention).
    `max_context`: tokens, lowers the checkpoint's own limit. `min_pixels`, `max_pixels`: of a resized image.
    `dialect`: a shipped name or a path of a TOML file that is copied into the bundle; None: the checkpoint's own
    dialect.toml, else gog.
    `allow_missing_tokenizer`: for checkpoints that serve measurements only; such a bundle can't read text.
    """

    precision: PrecisionName = "int4"
    backend: Backend = "ort"
    recipe: Recipe | None = None
    int8: tuple[TensorClass, ...] = ()
    compute: Compute | None = None
    kv_dtype: KvDType | None = None
    vision_attention: VisionAttention | None = None
    exact_int4: bool = False
    name: str | None = None
    dialect: str | None = None
    max_context: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    allow_missing_tokenizer: bool = False


@dataclass(frozen=True)
class Resolved:
    """Options without gaps."""

    compute: Compute
    kv_dtype: KvDType
    vision_attention: VisionAttention
    recipe: Recipe


def resolve(options: ExportOptions) -> Resolved:
    """Fill in what follows from the backend.

    Raises:
        UsageError: options that contradict each other or are unknown.
    """
    for name, value, known in (
        ("precision", options.precision, PRECISIONS),
        ("backend", options.backend, tuple(BACKENDS)),
        ("vision_attention", options.vision_attention or "bfloat16", VISION_ATTENTION),
    ):
        if value not in known:
            raise UsageError(f"{name} {value!r} is unknown: choose {', '.join(known)}")
    if options.max_context is not None and options.max_context < 1:
        raise UsageError(f"max_context must be at least 1, not {options.max_context}")
    backend, rules, native = options.backend, BACKENDS[options.backend], options.backend == "native"
    compute = options.compute or ("float32" if options.precision == "fp32" else rules.compute[0])
    if compute not in rules.compute:
        raise UsageError(f"backend {backend} computes in {' or '.join(rules.compute)}, not {compute}")
    kv_dtype = options.kv_dtype or (compute if compute in rules.kv_dtype else rules.kv_dtype[0])
    if kv_dtype not in rules.kv_dtype:
        raise UsageError(f"backend {backend} keeps the KV cache in {' or '.join(rules.kv_dtype)}, not {kv_dtype}")
    if options.vision_attention not in (None, "float32") and not native:
        raise UsageError(f"backend {backend} attends in float32: vision_attention needs backend native")
    if options.precision == "int5" and not native:
        raise UsageError(f"backend {backend} has no operators for 5 bits: use int4 or int8, or backend native")
    if options.exact_int4 and not native:
        raise UsageError(f"exact_int4 is a switch of backend native: {backend} never widens blocks")
    if options.exact_int4 and options.precision not in ("int4", "int5") and options.recipe is None:
        raise UsageError(f"exact_int4 is for int4 and int5: {options.precision} has no blocks that are widened")
    # int8 beside int8 weights costs nothing that can be measured (docs/graphs.md) and is the fastest
    quantised = options.precision in QUANTISED
    own: VisionAttention = "int8" if quantised else "bfloat16" if options.precision == "fp16" else "float32"
    attention = options.vision_attention or (own if native else "float32")
    if options.int8 and options.precision != "int4":
        raise UsageError(f"int8 keeps layers of an int4 export at 8 bits; this one is {options.precision}")
    recipe = (options.recipe or Recipe.for_precision(options.precision)).at_int8(options.int8)
    return Resolved(compute, kv_dtype, attention, fit(recipe, rules.fit))
