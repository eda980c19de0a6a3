"""Qwen2.5-VL: RMSNorm / SwiGLU tower with window attention and a few full-attention blocks; Qwen2.5 decoder.

Reads top to bottom: config, attention, MLP, block, merger, tower. Weight names are next to their layer. Rows stay in
merge-block order everywhere: only window attention gathers them into windows and puts them back.
"""

from __future__ import annotations

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
from gog_edge.families.layout import Inputs, mrope, rotary_inputs, windows
from gog_edge.families.target import Target, Value, Windows
from gog_edge.manifest import DecoderSpec, VisionSpec
from gog_edge.serde import Section

VISUAL = "model.visual"


def parse(config: dict[str, Any]) -> ModelConfig:
    """config.json of any Qwen2.5-VL size: nested or flat, rope_scaling or rope_parameters.

    Raises:
        CheckpointError: names the key that is missing, wrong, or can't be exported right.
    """
    root = Section(config)
    text = root.section("text_config") if root.has("text_config") else root  # the hub's configs are flat
    decoder = _parse_decoder(root, text)
    vision = _parse_vision(root.section("vision_config"), decoder)
    return ModelConfig(vision, decoder, *read_tokens(root, text))


def tied(config: Mapping[str, Any]) -> bool:
    """transformers 4 wrote the flag into text_config; transformers 5 still reads it there for this family."""
    root = Section(config)
    inner = root.section("text_config").flag("tie_word_embeddings", False)
    return root.flag("tie_word_embeddings", False) or inner


def _parse_decoder(root: Section, text: Section) -> DecoderDims:
    hidden = text.integer("hidden_size")
    text.choice("hidden_act", ("silu",), "silu")
    if text.flag("use_sliding_window", False):
        raise text.fail("use_sliding_window", "is true; gog-edge exports full attention only")
    if any(kind != "full_attention" for kind in text.data.get("layer_types") or ()):
        raise text.fail("layer_types", "has others than full_attention, which is all that gog-edge exports")
    heads, kv_heads, head_dim = read_heads(text, hidden)
    if heads * head_dim != hidden:
        raise text.fail("head_dim", f"= {head_dim} times {heads} heads is not hidden_size {hidden}")
    theta, section = read_rope(root, text, 1000000.0, (16, 24, 24), head_dim, ("default", "mrope"))
    return DecoderDims(
        spec=DecoderSpec(
            layers=text.integer("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=text.integer("vocab_size"),
            rope_theta=theta,
            mrope_section=section,
            mrope_interleaved=False,
            max_context=text.integer("max_position_embeddings", 32768),
        ),
        intermediate=text.integer("intermediate_size"),
        eps=text.number("rms_norm_eps", 1e-5),
        qkv_bias=True,
        out_bias=False,
        qk_norm=False,
        tied=tied(root.data),
    )


def _parse_vision(vision: Section, decoder: DecoderDims) -> VisionDims:
    depth = vision.integer("depth", 32)
    hidden = vision.integer("hidden_size")
    heads, head_dim = vision_heads(vision, hidden)
    patch, merge = vision.size("patch_size", 14), vision.integer("spatial_merge_size", 2)
    window = vision.integer("window_size", 112)
    if window < merge * patch:
        raise vision.fail("window_size", f"= {window} is smaller than one image token ({merge * patch} pixels)")
    full = vision.integers("fullatt_block_indexes", (7, 15, 23, 31))
    if vision.integer("in_channels", vision.integer("in_chans", 3)) != 3:
        raise vision.fail("in_channels", "must be 3")
    out = vision.integer("out_hidden_size", decoder.spec.hidden)
    if out != decoder.spec.hidden:
        raise vision.fail("out_hidden_size", f"= {out} differs from the decoder's hidden_size {decoder.spec.hidden}")
    return VisionDims(
        spec=VisionSpec(
            depth=depth,
            hidden=hidden,
            heads=heads,
            head_dim=head_dim,
            out_hidden=out,
            rope_theta=read_vision_rope(vision),
            window=window // merge // patch,
            full_layers=tuple(i for i in full if i < depth),
        ),
        intermediate=vision.integer("intermediate_size"),
        patch=patch,
        merge=merge,
        temporal=vision.size("temporal_patch_size", 2),
        activation=vision.choice("hidden_act", ("silu",), "silu"),
    )


def attention(
    t: Target, dims: VisionDims, x: Value, cos: Value, sin: Value, windows: Windows | None, name: str
) -> Value:
    """Attention over all rows, or, given windows, inside each window only."""
    hidden, heads = dims.spec.hidden, dims.spec.heads
    qkv = linear(t, x, f"{name}.qkv", 3 * hidden, hidden, "vision")
    out = t.vision_attention(qkv, cos, sin, heads, windows)
    return linear(t, out, f"{name}.proj", hidden, hidden, "vision")


def mlp(t: Target, dims: VisionDims, x: Value, name: str) -> Value:
    """SwiGLU with biases; gate and up run as one matrix."""
    hidden, inner = dims.spec.hidden, dims.intermediate
    x = t.gated_linear(
        x,
        t.matrix((f"{name}.gate_proj.weight", f"{name}.up_proj.weight"), (inner, inner), hidden),
        (f"{name}.gate_proj.bias", f"{name}.up_proj.bias"),
        role="vision",
    )
    return linear(t, x, f"{name}.down_proj", hidden, inner, "vision")


def merger(t: Target, dims: VisionDims, x: Value, name: str) -> Value:
    """m*m patches become one token: RMSNorm, Linear, GELU, Linear; [n, hidden] -> [n/m^2, out]."""
    wide, out = dims.spec.hidden * dims.merge**2, dims.spec.out_hidden
    x = t.reshape(t.rms_norm(x, f"{name}.ln_q.weight", dims.eps), (-1, wide))
    x = linear(t, x, f"{name}.mlp.0", wide, wide, "merger")
    x = t.gelu(x, tanh=False)
    return linear(t, x, f"{name}.mlp.2", out, wide, "merger")


def build_vision(t: Target, dims: VisionDims) -> None:
    """The whole tower: features [n/m^2, H]."""
    spec = dims.spec
    patches = t.input("patches", "float32", ("n", dims.patch_values))
    cos = t.input("rope_cos", "float32", ("n", spec.head_dim // 2))
    sin = t.input("rope_sin", "float32", ("n", spec.head_dim // 2))
    windows = Windows(
        t.input("window_gather", "int64", ("W", "L")),
        t.input("window_mask", "int32", ("W", "L")),
        t.input("window_scatter", "int64", ("n",)),
    )
    x = t.linear(
        patches,
        t.folded_patches(f"{VISUAL}.patch_embed.proj.weight", spec.hidden, dims.temporal, dims.patch),
        (),
        role="patch_embed",
    )
    delta: Value | None = None  # output of the last sub-layer, not yet added to x
    for i in range(spec.depth):
        name = f"{VISUAL}.blocks.{i}"
        with t.scope(f"block.{i}"):
            normed, x = t.add_rms_norm(x, delta, f"{name}.norm1.weight", dims.eps)
            cut = None if i in spec.full_layers else windows
            delta = attention(t, dims, normed, cos, sin, cut, f"{name}.attn")
            normed, x = t.add_rms_norm(x, delta, f"{name}.norm2.weight", dims.eps)
            delta = mlp(t, dims, normed, f"{name}.mlp")
    with t.scope("merger"):
        x = x if delta is None else t.add(x, delta)
        features = merger(t, dims, x, f"{VISUAL}.merger")
    t.output(features, "features", "float32", ("m", spec.out_hidden))


def vision_inputs(vision: VisionSpec, merge: int, rows: int, columns: int) -> Inputs:
    """Rotary tables of the patches, and the windows that they attend in."""
    cut = windows(rows, columns, merge, vision.window)
    return rotary_inputs(vision, merge, rows, columns) | {
        "window_gather": cut.gather,
        "window_mask": cut.mask,
        "window_scatter": cut.scatter,
    }


FAMILY = Family(
    name="qwen2_5_vl",
    parse=parse,
    build_vision=build_vision,
    build_decoder=build_decoder,
    embedding=EMBEDDING,
    head=HEAD,
    tied=tied,
    processor=QWEN2_VL_PROCESSOR,
    box_frame="shown",
    vision_inputs=vision_inputs,
    rotary=mrope,
)
