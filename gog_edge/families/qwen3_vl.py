"""Qwen3-VL: SigLIP-like tower with a learned, interpolated position table and DeepStack; Qwen3 decoder.

Reads top to bottom: config, attention, MLP, block, mergers, tower. Weight names are next to their layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gog_edge.families.base import (
    QWEN2_VL_PROCESSOR,
    DecoderDims,
    Family,
    ModelConfig,
    VisionDims,
    linear,
    read_heads,
    read_rope,
    read_tokens,
    read_vision_rope,
    vision_heads,
)
from gog_edge.families.decoder import EMBEDDING, HEAD, build_decoder
from gog_edge.families.layout import Inputs, mrope, position_corners, rotary_inputs
from gog_edge.families.target import Target, Value
from gog_edge.manifest import DecoderSpec, VisionSpec
from gog_edge.serde import Section

VISUAL = "model.visual"


def parse(config: dict[str, Any]) -> ModelConfig:
    """config.json of any Qwen3-VL size, old or new spelling.

    Raises:
        CheckpointError: names the key that is missing, wrong, or can't be exported right.
    """
    root = Section(config)
    text = root.section("text_config")
    if not text.data:
        raise root.fail("text_config", "is missing (a flat Qwen3-VL configuration means nothing to transformers)")
    decoder = _parse_decoder(root, text)
    section = root.section("vision_config")
    vision = parse_vision(section, decoder.spec, section.integers("deepstack_visual_indexes", (8, 16, 24)))
    return ModelConfig(vision, decoder, *read_tokens(root, text))


def tied(config: Mapping[str, Any]) -> bool:
    """The root alone says so: what stands in text_config means nothing to transformers."""
    return Section(config).flag("tie_word_embeddings", False)


def _parse_decoder(root: Section, text: Section) -> DecoderDims:
    hidden = text.integer("hidden_size")
    text.choice("hidden_act", ("silu",), "silu")
    if not text.has("head_dim"):  # transformers' default, whatever the hidden size is
        text = Section({**text.data, "head_dim": 128}, text.path)
    heads, kv_heads, head_dim = read_heads(text, hidden)
    theta, section = read_rope(root, text, 500000.0, (24, 20, 20), head_dim, ("default",))
    taps = root.section("vision_config").integers("deepstack_visual_indexes", (8, 16, 24))
    bias = text.flag("attention_bias", False)
    spec = DecoderSpec(
        layers=text.integer("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=text.integer("vocab_size"),
        rope_theta=theta,
        mrope_section=section,
        mrope_interleaved=True,
        max_context=text.integer("max_position_embeddings", 128000),
        deepstack=len(taps),
    )
    if spec.deepstack > spec.layers:
        raise text.fail("num_hidden_layers", f"= {spec.layers} is less than the {spec.deepstack} DeepStack features")
    return DecoderDims(
        spec=spec,
        intermediate=text.integer("intermediate_size"),
        eps=text.number("rms_norm_eps", 1e-6),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        tied=tied(root.data),
    )


def parse_vision(vision: Section, decoder: DecoderSpec, taps: tuple[int, ...]) -> VisionDims:
    """The tower's shapes. `taps`: blocks that feed DeepStack."""
    depth = vision.integer("depth")
    hidden = vision.integer("hidden_size")
    heads, head_dim = vision_heads(vision, hidden)
    positions = vision.integer("num_position_embeddings", 2304)
    if math.isqrt(positions) ** 2 != positions:
        raise vision.fail("num_position_embeddings", f"= {positions} is not the square of a table's side")
    if len(set(taps)) != len(taps) or any(tap >= depth for tap in taps):
        raise vision.fail("deepstack_visual_indexes", f"must be different blocks below depth {depth}, not {list(taps)}")
    if vision.integer("in_channels", 3) != 3:
        raise vision.fail("in_channels", "must be 3")
    out = vision.integer("out_hidden_size", decoder.hidden)
    if out != decoder.hidden:
        raise vision.fail("out_hidden_size", f"= {out} differs from the decoder's hidden_size {decoder.hidden}")
    return VisionDims(
        spec=VisionSpec(
            depth=depth,
            hidden=hidden,
            heads=heads,
            head_dim=head_dim,
            out_hidden=out,
            rope_theta=read_vision_rope(vision),
            position_side=math.isqrt(positions),
            deepstack=len(taps),
        ),
        intermediate=vision.integer("intermediate_size"),
        patch=vision.size("patch_size", 16),
        merge=vision.integer("spatial_merge_size", 2),
        temporal=vision.size("temporal_patch_size", 2),
        activation=vision.choice("hidden_act", ("gelu_pytorch_tanh", "gelu"), "gelu_pytorch_tanh"),
        taps=taps,
    )


def embed(t: Target, dims: VisionDims) -> Value:
    """Patches through the folded patch embedding, plus the interpolated learned positions: [n, hidden]."""
    hidden, side = dims.spec.hidden, dims.spec.position_side
    patches = t.input("patches", "float32", ("n", dims.patch_values))
    pos_index = t.input("pos_index", "int64", (4, "n"))
    pos_weight = t.input("pos_weight", "float32", (4, "n"))
    x = t.linear(
        patches,
        t.folded_patches(f"{VISUAL}.patch_embed.proj.weight", hidden, dims.temporal, dims.patch),
        (f"{VISUAL}.patch_embed.proj.bias",),
        role="patch_embed",
    )
    table = t.parameter(f"{VISUAL}.pos_embed.weight", (side * side, hidden))
    return t.add(x, t.weighted_rows(table, pos_index, pos_weight))


def attention(t: Target, dims: VisionDims, x: Value, cos: Value, sin: Value, name: str) -> Value:
    """Full attention over all n rows of one image."""
    hidden, heads = dims.spec.hidden, dims.spec.heads
    qkv = linear(t, x, f"{name}.qkv", 3 * hidden, hidden, "vision")
    out = t.vision_attention(qkv, cos, sin, heads, None)
    return linear(t, out, f"{name}.proj", hidden, hidden, "vision")


def mlp(t: Target, dims: VisionDims, x: Value, name: str) -> Value:
    """fc1, GELU, fc2."""
    hidden, inner = dims.spec.hidden, dims.intermediate
    x = linear(t, x, f"{name}.linear_fc1", inner, hidden, "vision")
    x = t.gelu(x, tanh=dims.activation == "gelu_pytorch_tanh")
    return linear(t, x, f"{name}.linear_fc2", hidden, inner, "vision")


def merger(t: Target, dims: VisionDims, x: Value, name: str, *, norm_after_merge: bool) -> Value:
    """m*m patches become one token: norm, fc1, GELU, fc2; [n, hidden] -> [n/m^2, out]. DeepStack merges, then norms."""
    wide = dims.spec.hidden * dims.merge**2
    norm = (f"{name}.norm.weight", f"{name}.norm.bias", dims.eps)
    if norm_after_merge:
        x = t.layer_norm(t.reshape(x, (-1, wide)), *norm)
    else:
        x = t.reshape(t.layer_norm(x, *norm), (-1, wide))
    x = linear(t, x, f"{name}.linear_fc1", wide, wide, "merger")
    x = t.gelu(x, tanh=False)
    out = dims.spec.out_hidden
    return linear(t, x, f"{name}.linear_fc2", out, wide, "merger")


def build_vision(t: Target, dims: VisionDims) -> None:
    """The whole tower: features [n/m^2, H] and deepstack [D, n/m^2, H]."""
    spec = dims.spec
    x = embed(t, dims)
    cos = t.input("rope_cos", "float32", ("n", spec.head_dim // 2))
    sin = t.input("rope_sin", "float32", ("n", spec.head_dim // 2))
    taps: dict[int, Value] = {}
    delta: Value | None = None  # output of the last sub-layer, not yet added to x
    for i in range(spec.depth):
        name = f"{VISUAL}.blocks.{i}"
        with t.scope(f"block.{i}"):
            normed, x = t.add_layer_norm(x, delta, f"{name}.norm1.weight", f"{name}.norm1.bias", dims.eps)
            delta = attention(t, dims, normed, cos, sin, f"{name}.attn")
            normed, x = t.add_layer_norm(x, delta, f"{name}.norm2.weight", f"{name}.norm2.bias", dims.eps)
            delta = mlp(t, dims, normed, f"{name}.mlp")
        if i in dims.taps:
            x, delta = t.add(x, delta), None
            tap = dims.taps.index(i)
            with t.scope(f"deepstack.{tap}"):
                taps[i] = merger(t, dims, x, f"{VISUAL}.deepstack_merger_list.{tap}", norm_after_merge=True)
    with t.scope("merger"):
        x = x if delta is None else t.add(x, delta)
        features = merger(t, dims, x, f"{VISUAL}.merger", norm_after_merge=False)
    t.output(features, "features", "float32", ("m", spec.out_hidden))
    if taps:
        stacked = t.stack([taps[i] for i in sorted(taps)])
        t.output(stacked, "deepstack", "float32", (len(taps), "m", spec.out_hidden))


def vision_inputs(vision: VisionSpec, merge: int, rows: int, columns: int) -> Inputs:
    """Rotary tables of the patches, and where they lie in the learned position table."""
    index, weight = position_corners(rows, columns, merge, vision.position_side)
    return rotary_inputs(vision, merge, rows, columns) | {"pos_index": index, "pos_weight": weight}


FAMILY = Family(
    name="qwen3_vl",
    parse=parse,
    build_vision=build_vision,
    build_decoder=build_decoder,
    embedding=EMBEDDING,
    head=HEAD,
    tied=tied,
    processor=QWEN2_VL_PROCESSOR,
    box_frame="thousand",
    vision_inputs=vision_inputs,
    rotary=mrope,
)
