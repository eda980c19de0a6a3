"""What a family is: everything about a checkpoint that its `model_type` decides.

A family is one file: it reads config.json, names the weights, says how a picture is prepared and how boxes are written,
computes the arrays that its graphs take as inputs, and builds both graphs on a `Target` that the exporter hands in. The
exporter and the runtime ask it and know no family by name. VisionSpec and DecoderSpec go into the manifest, so that the
runtime can ask again; the rest of a ModelConfig stays in the exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gog_edge.families.layout import F32, I64, Inputs
from gog_edge.families.target import AttentionCache, LayerCache, Role, Target, Value
from gog_edge.manifest import DecoderSpec, VisionSpec
from gog_edge.serde import Section
from gog_edge.types import BoxFrame


@dataclass(frozen=True)
class VisionDims:
    """The vision tower as the exporter sees it. `taps`: blocks whose output feeds a DeepStack merger, in order."""

    spec: VisionSpec
    intermediate: int
    patch: int
    merge: int
    temporal: int
    activation: str
    taps: tuple[int, ...] = ()
    eps: float = 1e-6

    @property
    def patch_values(self) -> int:
        """Columns of `patches`: channels * patch^2, the temporal axis folded."""
        return 3 * self.patch**2


@dataclass(frozen=True)
class ExpertDims:
    """Layers whose router picks some SwiGLU experts of `intermediate` for each token; DecoderSpec says how many of how
    many."""

    intermediate: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class DecoderDims:
    """The language decoder as the exporter sees it. `intermediate`: of the layers without experts."""

    spec: DecoderSpec
    intermediate: int
    eps: float
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    tied: bool  # the embedding is the head, too: as config.json says, then as the tensors say (`Checkpoint.head`)
    experts: ExpertDims | None = None


@dataclass(frozen=True)
class ModelConfig:
    """config.json, understood."""

    vision: VisionDims
    decoder: DecoderDims
    image_token: int | None  # None: config.json does not say, the tokenizer will
    vision_start: int | None
    vision_end: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True)
class Processor:
    """The image processor (a class of transformers) that the family's pictures go through, and what that class assumes
    where a checkpoint's files say nothing: mean and deviation of (red, green, blue) in 0..1, sides in pixels and in
    patches, and the areas in pixels that a resized image keeps within."""

    name: str
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int


QWEN2_VL_PROCESSOR = Processor(
    name="Qwen2VLImageProcessor",
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=56 * 56,
    max_pixels=28 * 28 * 1280,
)


@dataclass(frozen=True)
class SetAside:
    """Tensors of a checkpoint that are known and not exported: `pattern` matches their names from the start."""

    pattern: str
    what: str


def attention_everywhere(decoder: DecoderSpec) -> tuple[LayerCache, ...]:
    """Caches of a decoder whose layers all attend."""
    return (AttentionCache(decoder.kv_heads, decoder.head_dim),) * decoder.layers


@dataclass(frozen=True)
class Family:
    """One model family, by the `model_type` of config.json.

    `parse`: config.json -> dimensions; CheckpointError names the key that is missing, wrong or can't be exported right.
    `build_vision`, `build_decoder`: write the graph on a target; weight names and roles stand where they are used.
    `embedding`, `head`: weight names of the token table and of the output matrix.
    `tied`: whether config.json asks for the table as the output matrix; tensors that differ overrule it.
    `box_frame`: in what the family was trained to write boxes, for dialects that leave it to the family.
    `vision_inputs`: (tower, merge size, rows, columns of patches) -> every input of the vision graph but `patches`.
    `rotary`: decoder -> frequency and axis (0 time, 1 height, 2 width) of each rotary pair of a head.
    `caches`: decoder -> what each layer keeps between runs, first layer first.
    `set_aside`: tensors that an export leaves out and says so.
    `other_experts`: a layout of experts beside [experts, outputs, inputs] that transformers converts for the family:
    "turned" is [experts, inputs, outputs], "single" a gate_proj, an up_proj and a down_proj for each expert.
    """

    name: str
    parse: Callable[[dict[str, Any]], ModelConfig]
    build_vision: Callable[[Target, VisionDims], None]
    build_decoder: Callable[[Target, DecoderDims, tuple[LayerCache, ...]], None]
    embedding: str
    head: str
    tied: Callable[[Mapping[str, Any]], bool]
    processor: Processor
    box_frame: BoxFrame
    vision_inputs: Callable[[VisionSpec, int, int, int], Inputs]
    rotary: Callable[[DecoderSpec], tuple[F32, I64]]
    caches: Callable[[DecoderSpec], tuple[LayerCache, ...]] = attention_everywhere
    set_aside: tuple[SetAside, ...] = ()
    other_experts: Literal["turned", "single"] | None = None

    def cache_bytes(self, decoder: DecoderSpec) -> tuple[float, float]:
        """Bytes of keys and values a token, and of all recurrent states (float32). An int8 row of head_dim values has a
        float32 scale beside it."""
        size = {"float32": 4.0, "float16": 2.0, "int8": 1.0 + 4.0 / decoder.head_dim}[decoder.kv_dtype]
        layers = self.caches(decoder)
        return size * sum(layer.values_per_token for layer in layers), 4.0 * sum(layer.fixed_values for layer in layers)


def read_tokens(root: Section, text: Section) -> tuple[int | None, int | None, int | None, tuple[int, ...], int | None]:
    """(image token, vision start, vision end, end-of-turn ids, padding id) as far as config.json says.

    Raises:
        CheckpointError: an id beyond the vocabulary.
    """
    vocab = text.integer("vocab_size")
    for section in (root, text):
        for key in section.data:
            beyond = [i for i in (section.ids(key) if key.endswith("_token_id") else ()) if i >= vocab]
            if beyond:
                raise section.fail(key, f"= {beyond[0]} is beyond the vocabulary of {vocab} tokens")

    def one(key: str) -> int | None:
        return next((s.integer(key, minimum=0) for s in (root, text) if s.has(key)), None)

    eos = next((s.ids("eos_token_id") for s in (root, text) if s.has("eos_token_id")), ())
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    image, start, end = (one(name) for name in names)
    return image, start, end, eos, one("pad_token_id")


def read_rope(
    root: Section,
    text: Section,
    default_theta: float,
    default_section: tuple[int, int, int],
    head_dim: int,
    types: tuple[str, ...],
) -> tuple[float, tuple[int, int, int]]:
    """(theta, M-RoPE section) of the decoder; `types`: the family's names of the plain rope.

    Raises:
        CheckpointError: a rope type other than the plain one, or a section that does not fill half a head.
    """
    theta, rope = read_plain_rope(root, text, default_theta, types)
    section = rope.integers("mrope_section", default_section)
    if len(section) != 3 or sum(section) != head_dim // 2:
        raise rope.fail(
            "mrope_section", f"must be three numbers with the sum head_dim/2 = {head_dim // 2}, not {list(section)}"
        )
    return theta, (section[0], section[1], section[2])


def read_plain_rope(
    root: Section, text: Section, default_theta: float, types: tuple[str, ...]
) -> tuple[float, Section]:
    """(theta, the object that holds what else is said of the rope) of the decoder.

    Raises:
        CheckpointError: a rope type other than the plain one.
    """
    if text.data is not root.data:  # nested: transformers ignores what is next to it, or fails on it
        for key in ("rope_scaling", "rope_parameters"):
            _check_plain(root.section(key), types)
    return _rope(text, default_theta, types)


def read_vision_rope(vision: Section) -> float:
    """theta of the tower, whose rotary embedding is axial.

    Raises:
        CheckpointError: another rope type.
    """
    return _rope(vision, 10000.0, ("axial", "default"))[0]


def _rope(section: Section, default_theta: float, types: tuple[str, ...]) -> tuple[float, Section]:
    """(theta, the object that holds) of a configuration, chosen as transformers does.

    `rope_scaling` (the old spelling) comes before `rope_parameters`, `rope_type` before `type`, and a theta inside
    before `rope_theta` beside it. What is in another section (the root beside a text_config) does not count.
    """
    rope = section.section("rope_scaling")
    if not rope.data:
        rope = section.section("rope_parameters")
    _check_plain(rope, types)
    return rope.number("rope_theta", section.number("rope_theta", default_theta)), rope


def _check_plain(rope: Section, types: tuple[str, ...]) -> None:
    for key, value in rope.data.items():
        if isinstance(value, Mapping):
            raise rope.fail(key, "is an object; gog-edge exports one rope for all layers only")
    rope.choice("rope_type" if rope.has("rope_type") else "type", types, types[0])


def read_heads(text: Section, hidden: int) -> tuple[int, int, int]:
    """(heads, KV heads, head_dim) with head_dim given or derived.

    Raises:
        CheckpointError: the heads do not divide.
    """
    heads = text.integer("num_attention_heads")
    kv_heads = text.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise text.fail("num_key_value_heads", f"= {kv_heads} does not divide num_attention_heads = {heads}")
    if not text.has("head_dim") and hidden % heads:
        raise text.fail("head_dim", f"is missing and hidden_size {hidden} is not a multiple of {heads} heads")
    head_dim = text.integer("head_dim", hidden // heads)
    if head_dim % 2:
        raise text.fail("head_dim", f"= {head_dim} must be even for rotary embedding")
    return heads, kv_heads, head_dim


def linear(t: Target, x: Value, name: str, outputs: int, inputs: int, role: Role) -> Value:
    """A linear layer with a bias; [rows, inputs] -> [rows, outputs]."""
    return t.linear(x, t.matrix((f"{name}.weight",), (outputs,), inputs), (f"{name}.bias",), role=role)


def vision_heads(vision: Section, hidden: int) -> tuple[int, int]:
    """(heads, head_dim) of the tower; a head must split into two rotary halves of even size."""
    heads = vision.integer("num_heads")
    if hidden % heads or (hidden // heads) % 4:
        raise vision.fail("num_heads", f"= {heads} must divide hidden_size {hidden} into heads that are multiples of 4")
    return heads, hidden // heads
