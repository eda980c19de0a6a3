"""Everything a user may decide about an export, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gog_edge.errors import UsageError
from gog_edge.export.quantize.fit import Change, fit, for_cuda, for_native, for_standard, for_stock
from gog_edge.export.quantize.recipe import Recipe, TensorClass
from gog_edge.manifest import Flavour, PrecisionName, Target

PRECISIONS: tuple[PrecisionName, ...] = ("int4", "int8", "fp16", "fp32")
TARGETS: tuple[Target, ...] = ("cpu", "cuda", "tensorrt-rtx", "tensorrt")
KvDType = Literal["float32", "float16", "int8"]
Ops = Literal["stock", "native"]
Compute = Literal["float32", "float16"]
VisionAttention = Literal["bfloat16", "int8", "float32"]

FITS: dict[str, Change] = {"stock": for_stock, "native": for_native}
VISION_ATTENTION: tuple[VisionAttention, ...] = ("bfloat16", "int8", "float32")
_KV_DTYPES: dict[bool, tuple[KvDType, ...]] = {False: ("float32", "float16"), True: ("float16", "int8")}


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export; None means: what suits the target.

    `ops`: stock operators of ONNX Runtime, or this package's own (`gog_edge.native.contract`: faster, CPUs only,
    compiled on the machine that runs the bundle).
    `vision_attention`: arithmetic of the vision tower's attention, native operators only (docs/graphs.md has costs).
    `exact_int4`: native int4 layers keep every block's own scale in prefill, too, instead of widening blocks to int8
    groups: prefill is a quarter slower.
    `recipe`: scheme of every tensor class; default: `Recipe.for_precision(precision)`.
    `int8`: classes of the decoder's layers that an int4 export keeps at 8 bits (docs/quantization.md: attention).
    `max_context`: tokens, lowers the checkpoint's own limit. `min_pixels`, `max_pixels`: of a resized image.
    `dialect`: a shipped name or a path of a TOML file that is copied into the bundle; None: the checkpoint's own
    dialect.toml, else gog.
    `allow_missing_tokenizer`: for checkpoints that serve measurements only; such a bundle can't read text.
    """

    precision: PrecisionName = "int4"
    target: Target = "cpu"
    flavour: Flavour | None = None
    recipe: Recipe | None = None
    int8: tuple[TensorClass, ...] = ()
    ops: Ops = "stock"
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

    flavour: Flavour
    ops: Ops
    compute: Compute
    kv_dtype: KvDType
    vision_attention: VisionAttention
    exact_int4: bool
    recipe: Recipe


def resolve(options: ExportOptions) -> Resolved:
    """Fill in what follows from the target.

    Raises:
        UsageError: options that contradict each other or are unknown.
    """
    for name, value, known in (
        ("precision", options.precision, PRECISIONS),
        ("target", options.target, TARGETS),
        ("ops", options.ops, tuple(FITS)),
        ("vision_attention", options.vision_attention or "bfloat16", VISION_ATTENTION),
    ):
        if value not in known:
            raise UsageError(f"{name} {value!r} is unknown: choose {', '.join(known)}")
    if options.max_context is not None and options.max_context < 1:
        raise UsageError(f"max_context must be at least 1, not {options.max_context}")
    flavour = _flavour(options)
    native, gpu = options.ops == "native", options.target != "cpu"
    compute: Compute = options.compute or ("float16" if gpu and options.precision != "fp32" else "float32")
    if not gpu and compute == "float16" and flavour == "ort":
        raise UsageError("float16 arithmetic is slow or missing on CPUs: use compute float32 for target cpu")
    kv_dtype: KvDType = options.kv_dtype or ("float16" if native else compute)
    if kv_dtype not in _KV_DTYPES[native]:
        raise UsageError(f"ops {options.ops} keep the KV cache in {' or '.join(_KV_DTYPES[native])}, not {kv_dtype}")
    if options.vision_attention not in (None, "float32") and not native:
        raise UsageError(f"ops {options.ops} attend in float32: vision_attention needs ops native")
    if options.exact_int4 and not native:
        raise UsageError("exact_int4 is a switch of native operators: stock ones never widen blocks")
    # int8 beside int8 weights costs nothing that can be measured (docs/graphs.md) and is the fastest
    quantised = options.precision in ("int4", "int8")
    own: VisionAttention = "int8" if quantised else "bfloat16" if options.precision == "fp16" else "float32"
    attention = options.vision_attention or (own if native else "float32")
    change = for_standard if flavour == "standard" else for_cuda if gpu else FITS[options.ops]
    if options.int8 and options.precision != "int4":
        raise UsageError(f"int8 keeps layers of an int4 export at 8 bits; this one is {options.precision}")
    recipe = (options.recipe or Recipe.for_precision(options.precision)).at_int8(options.int8)
    return Resolved(flavour, options.ops, compute, kv_dtype, attention, options.exact_int4, fit(recipe, change))


def _flavour(options: ExportOptions) -> Flavour:
    tensorrt = options.target in ("tensorrt", "tensorrt-rtx")
    flavour: Flavour = options.flavour or ("standard" if tensorrt else "ort")
    if tensorrt and flavour != "standard":
        raise UsageError(f"target {options.target} needs flavour standard, not {flavour}")
    if options.ops == "native" and (options.target != "cpu" or flavour != "ort"):
        raise UsageError("native operators run on CPUs only: use ops stock for other targets and flavours")
    return flavour
