"""Qwen3.5, 3.6 and 3.8 (dense): Qwen3-VL's tower without DeepStack; a decoder of Gated DeltaNet layers, every fourth of
which is full attention with an output gate and a rotary embedding of a part of each head.

Reads top to bottom: config, caches, rotary, attention, linear attention, model. Weight names are next to their layer.
Formulas: Yang et al. 2024 (arXiv 2412.06464), in the form of transformers' `qwen3_5`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gog_edge.families.base import (
    QWEN2_VL_PROCESSOR,
    DecoderDims,
    Family,
    ModelConfig,
    SetAside,
    read_heads,
    read_plain_rope,
    read_tokens,
)
from gog_edge.families.decoder import EMBEDDING, HEAD, MODEL, mlp
from gog_edge.families.layout import F32, I64, inverse_frequencies
from gog_edge.families.qwen3_vl import build_vision, parse_vision, tied, vision_inputs
from gog_edge.families.target import (
    AttentionCache,
    Cache,
    DeltaInputs,
    DeltaWeights,
    LayerCache,
    RecurrentCache,
    Target,
    Value,
    Vector,
)
from gog_edge.manifest import DecoderSpec, LinearSpec
from gog_edge.serde import Section

FULL, LINEAR = "full_attention", "linear_attention"
FeedForward = Callable[[Target, DecoderDims, Value, int], Value]


def parse(config: dict[str, Any]) -> ModelConfig:
    """config.json of any dense Qwen3.5, 3.6 or 3.8, old or new spelling.

    Raises:
        CheckpointError: names the key that is missing, wrong, or can't be exported right.
    """
    root = Section(config)
    text = root.section("text_config")
    if not text.data:
        raise root.fail("text_config", "is missing (a flat Qwen3.5 configuration means nothing to transformers)")
    spec = parse_decoder(root, text)
    decoder = DecoderDims(
        spec=spec,
        intermediate=text.integer("intermediate_size"),
        eps=text.number("rms_norm_eps", 1e-6),
        qkv_bias=False,
        out_bias=False,
        qk_norm=True,
        tied=tied(root.data),
    )
    return ModelConfig(parse_vision(root.section("vision_config"), spec, ()), decoder, *read_tokens(root, text))


def parse_decoder(root: Section, text: Section) -> DecoderSpec:
    """The shapes of the decoder, but for its feed-forward layers."""
    hidden, layers = text.integer("hidden_size"), text.integer("num_hidden_layers")
    text.choice("hidden_act", ("silu",), "silu")
    if text.flag("attention_bias", False):
        raise text.fail("attention_bias", "is true; no published Qwen3.5 has such biases, and gog-edge exports none")
    if not text.has("head_dim"):  # transformers' default, whatever the hidden size is
        text = Section({**text.data, "head_dim": 256}, text.path)
    heads, kv_heads, head_dim = read_heads(text, hidden)
    theta, rope = read_plain_rope(root, text, 10000.0, ("default",))
    part = rope.number("partial_rotary_factor", text.number("partial_rotary_factor", 0.25))
    rotary = int(head_dim * part)
    if not 2 <= rotary <= head_dim or rotary % 2:
        raise rope.fail("partial_rotary_factor", f"= {part} turns {rotary} of {head_dim} dimensions of a head")
    section = rope.integers("mrope_section", (11, 11, 10))
    if len(section) < 3:
        raise rope.fail("mrope_section", f"must be three numbers, not {list(section)}")
    return DecoderSpec(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=text.integer("vocab_size"),
        rope_theta=theta,
        mrope_section=(section[0], section[1], section[2]),
        mrope_interleaved=True,
        max_context=text.integer("max_position_embeddings", 32768),
        rotary=rotary,
        linear=_parse_linear(text, layers),
    )


def _parse_linear(text: Section, layers: int) -> LinearSpec:
    key_heads = text.integer("linear_num_key_heads", 16)
    value_heads = text.integer("linear_num_value_heads", 32)
    if value_heads % key_heads:
        raise text.fail("linear_num_value_heads", f"= {value_heads} is not a multiple of {key_heads} key heads")
    return LinearSpec(
        full_layers=_full_layers(text, layers),
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=text.integer("linear_key_head_dim", 128),
        value_dim=text.integer("linear_value_head_dim", 128),
        kernel=text.integer("linear_conv_kernel_dim", 4, minimum=2),
    )


def _full_layers(text: Section, layers: int) -> tuple[int, ...]:
    """Which layers attend: as `layer_types` says, else every `full_attention_interval`-th."""
    if text.has("layer_types"):
        kinds = text.data["layer_types"]
        if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or set(kinds) - {FULL, LINEAR}:
            raise text.fail("layer_types", f"must say {FULL} or {LINEAR} for each of {layers} layers")
        full = tuple(i for i, kind in enumerate(kinds) if kind == FULL)
    else:
        interval = text.integer("full_attention_interval", 4)
        full = tuple(i for i in range(layers) if (i + 1) % interval == 0)
    if not full:
        raise text.fail("layer_types", f"leaves no layer with {FULL}, which gog-edge needs one of")
    return full


def caches(decoder: DecoderSpec) -> tuple[LayerCache, ...]:
    """Keys and values where a layer attends, else its state."""
    linear = decoder.linear
    assert linear is not None, "not a decoder of this family"
    attention = AttentionCache(decoder.kv_heads, decoder.head_dim)
    state = RecurrentCache(linear.key_heads, linear.value_heads, linear.key_dim, linear.value_dim, linear.kernel)
    return tuple(attention if i in linear.full_layers else state for i in range(decoder.layers))


def rotary(decoder: DecoderSpec) -> tuple[F32, I64]:
    """Interleaved M-RoPE of the first `decoder.rotary` dimensions: of their pairs 1, 4, 7 … take the row and 2, 5, 8 …
    the column, as many as their section says, the others time. The pairs of the other dimensions stand still."""
    turned = decoder.rotary // 2
    frequencies = np.zeros(decoder.head_dim // 2, np.float32)
    frequencies[:turned] = inverse_frequencies(decoder.rotary, decoder.rope_theta)
    axes = np.zeros(len(frequencies), np.int64)
    for axis in (1, 2):
        axes[axis : min(decoder.mrope_section[axis] * 3, turned) : 3] = axis
    return frequencies, axes


def head_order(decoder: DecoderSpec) -> tuple[int, ...]:
    """Dimensions of a head in an order in which what turns together lies half a head apart, as everywhere else.

    The checkpoint turns dimension i with i + rotary/2. Queries and keys may be stored in any common order: their
    products and norms stay.
    """
    half, turned = decoder.head_dim // 2, decoder.rotary // 2
    still = range(2 * turned, decoder.head_dim)
    cut = half - turned
    return (*range(turned), *still[:cut], *range(turned, 2 * turned), *still[cut:])


def attention(t: Target, dims: DecoderDims, cache: Cache, x: Value, layer: int, cos: Value, sin: Value) -> Value:
    """Grouped-query attention whose output is gated. `q_proj` has a head's queries, then its gate."""
    spec, name = dims.spec, f"{MODEL}.layers.{layer}.self_attn"
    wide, narrow, size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.head_dim
    inside = head_order(spec)
    order = (
        *(head * 2 * size + i for head in range(spec.heads) for i in inside),
        *(2 * wide + head * size + i for head in range(spec.kv_heads) for i in inside),
        *range(2 * wide + narrow, 2 * wide + 2 * narrow),
        *(head * 2 * size + size + i for head in range(spec.heads) for i in range(size)),
    )
    parts = tuple(f"{name}.{part}.weight" for part in ("q_proj", "k_proj", "v_proj"))
    matrix = t.matrix(parts, (2 * wide, narrow, narrow), spec.hidden, order)
    qkv, gate = t.split(t.linear(x, matrix, (), role="attention"), (wide + 2 * narrow, wide))
    norms = (Vector(f"{name}.q_norm.weight", 1.0, inside), Vector(f"{name}.k_norm.weight", 1.0, inside))
    out = t.sigmoid_gate(t.cached_attention(cache, layer, qkv, cos, sin, norms, dims.eps), gate)
    return t.linear(out, t.matrix((f"{name}.o_proj.weight",), (spec.hidden,), wide), (), role="attention_out")


def linear_attention(t: Target, dims: DecoderDims, cache: Cache, x: Value, layer: int) -> Value:
    """A Gated DeltaNet layer: convolution and delta rule over its state, a norm of each head, an output gate."""
    linear, hidden, name = dims.spec.linear, dims.spec.hidden, f"{MODEL}.layers.{layer}.linear_attn"
    assert linear is not None, "not a decoder of this family"
    heads, values = linear.value_heads, linear.value_heads * linear.value_dim
    channels = 2 * linear.key_heads * linear.key_dim + values
    matrix = t.matrix((f"{name}.in_proj_qkv.weight", f"{name}.in_proj_z.weight"), (channels, values), hidden)
    qkv, gate = t.split(t.linear(x, matrix, (), role="attention"), (channels, values))
    matrix = t.matrix((f"{name}.in_proj_a.weight", f"{name}.in_proj_b.weight"), (heads, heads), hidden)
    step, rate = t.split(t.linear(x, matrix, (), role="gates"), (heads, heads))
    weights = DeltaWeights(f"{name}.conv1d.weight", f"{name}.A_log", f"{name}.dt_bias", f"{name}.norm.weight")
    out = t.gated_delta(cache, layer, DeltaInputs(qkv, step, rate, gate), weights, dims.eps)
    return t.linear(out, t.matrix((f"{name}.out_proj.weight",), (hidden,), values), (), role="attention_out")


def build_decoder(
    t: Target, dims: DecoderDims, caches: tuple[LayerCache, ...], feed_forward: FeedForward = mlp
) -> None:
    """inputs_embeds and the caches in, logits of the last `last_k` tokens and the caches out."""
    spec = dims.spec
    embeds = t.input("inputs_embeds", "float32", (1, "s", spec.hidden))
    cos = t.input("rope_cos", "float32", ("s", spec.head_dim // 2))
    sin = t.input("rope_sin", "float32", ("s", spec.head_dim // 2))
    last_k = t.input("last_k", "int64", (1,))
    cache = t.cache(spec, caches)
    x = t.reshape(embeds, (-1, spec.hidden))
    delta: Value | None = None  # output of the last sub-layer, not yet added to x
    for i, kind in enumerate(caches):
        name = f"{MODEL}.layers.{i}"
        with t.scope(f"layer.{i}"):
            normed, x = t.add_rms_norm(x, delta, Vector(f"{name}.input_layernorm.weight", 1.0), dims.eps)
            if isinstance(kind, RecurrentCache):
                delta = linear_attention(t, dims, cache, normed, i)
            else:
                delta = attention(t, dims, cache, normed, i, cos, sin)
            normed, x = t.add_rms_norm(x, delta, Vector(f"{name}.post_attention_layernorm.weight", 1.0), dims.eps)
            delta = feed_forward(t, dims, normed, i)
    with t.scope("head"):
        x = t.last_rows(x if delta is None else t.add(x, delta), last_k)
        x = t.rms_norm(x, Vector(f"{MODEL}.norm.weight", 1.0), dims.eps)
        head = EMBEDDING if dims.tied else HEAD
        logits = t.linear(x, t.matrix((head,), (spec.vocab,), spec.hidden), (), role="head")
    t.output(t.reshape(logits, (1, -1, spec.vocab)), "logits", "float32", (1, "last_k", spec.vocab))
    cache.finish()


MTP = SetAside(r"mtp\.", "a head that predicts several tokens (MTP), which is not used yet")

FAMILY = Family(
    name="qwen3_5",
    parse=parse,
    build_vision=build_vision,
    build_decoder=build_decoder,
    embedding=EMBEDDING,
    head=HEAD,
    tied=tied,
    processor=QWEN2_VL_PROCESSOR,
    box_frame="thousand",
    vision_inputs=vision_inputs,
    rotary=rotary,
    caches=caches,
    set_aside=(MTP,),
)
