"""What a family knows about a checkpoint: dimensions beyond those the runtime needs, and how to build both graphs.

The runtime's half (VisionSpec, DecoderSpec) goes into the manifest; the rest stays in the exporter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gog_edge.manifest import DecoderSpec, Family, VisionSpec
from gog_edge.serde import Section

if TYPE_CHECKING:
    from gog_edge.export.graph.target import Target


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
class DecoderDims:
    """The language decoder as the exporter sees it."""

    spec: DecoderSpec
    intermediate: int
    eps: float
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    tied: bool


@dataclass(frozen=True)
class ModelConfig:
    """config.json, understood."""

    family: Family
    vision: VisionDims
    decoder: DecoderDims
    image_token: int | None  # None: config.json does not say, the tokenizer will
    vision_start: int | None
    vision_end: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True)
class FamilyDefinition:
    """One model family: how its config reads and how its vision tower is built (the decoder is shared)."""

    name: Family
    model_types: tuple[str, ...]
    parse: Callable[[dict[str, Any]], ModelConfig]
    build_vision: Callable[[Target, VisionDims], None]


def read_tokens(root: Section, text: Section) -> tuple[int | None, int | None, int | None, tuple[int, ...], int | None]:
    """(image token, vision start, vision end, end-of-turn ids, padding id) as far as config.json says."""

    def one(key: str) -> int | None:
        return next((s.integer(key, minimum=0) for s in (root, text) if s.has(key)), None)

    eos = next((s.ids("eos_token_id") for s in (root, text) if s.has("eos_token_id")), ())
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    image, start, end = (one(name) for name in names)
    return image, start, end, eos, one("pad_token_id")


def read_rope(
    text: Section, default_theta: float, default_section: tuple[int, int, int], head_dim: int
) -> tuple[float, tuple[int, int, int]]:
    """(theta, M-RoPE section) from `rope_parameters` (new) or `rope_scaling` + `rope_theta` (old spelling).

    Raises:
        CheckpointError: a rope type other than the plain one, or a section that does not fill half a head.
    """
    rope = text.section("rope_parameters", "rope_scaling")
    for key in ("rope_type", "type"):
        rope.choice(key, ("default", "mrope"), "default")
    theta = rope.number("rope_theta", text.number("rope_theta", default_theta))
    section = rope.integers("mrope_section", default_section)
    if len(section) != 3 or sum(section) != head_dim // 2:
        raise rope.fail(
            "mrope_section", f"must be three numbers with the sum head_dim/2 = {head_dim // 2}, not {list(section)}"
        )
    return theta, (section[0], section[1], section[2])


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


def text_section(root: Section) -> Section:
    """The language half: nested under text_config, or flat in the root (the hub's Qwen2.5-VL configs)."""
    return root.section("text_config") if root.has("text_config") else root


def is_tied(root: Section, text: Section) -> bool:
    """Whether the head is the embedding: said in the root, in text_config, or in both (then either is enough)."""
    return root.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False)


def vision_heads(vision: Section, hidden: int) -> tuple[int, int]:
    """(heads, head_dim) of the tower; a head must split into two rotary halves of even size."""
    heads = vision.integer("num_heads")
    if hidden % heads or (hidden // heads) % 4:
        raise vision.fail("num_heads", f"= {heads} must divide hidden_size {hidden} into heads that are multiples of 4")
    return heads, hidden // heads
