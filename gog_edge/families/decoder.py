"""The language decoder that Qwen2.5-VL and Qwen3-VL share: they differ in biases, q/k norms, DeepStack and experts.

Reads top to bottom: attention, MLP, experts, block, model. Rows are tokens: between attention nodes all is 2-D [s, …].
"""

from __future__ import annotations

from gog_edge.families.base import DecoderDims, ExpertDims
from gog_edge.families.target import Cache, LayerCache, Target, Value

MODEL = "model.language_model"
EMBEDDING = f"{MODEL}.embed_tokens.weight"
HEAD = "lm_head.weight"


def attention(t: Target, dims: DecoderDims, cache: Cache, x: Value, layer: int, cos: Value, sin: Value) -> Value:
    """Grouped-query attention over the KV cache, written in place."""
    spec, name = dims.spec, f"{MODEL}.layers.{layer}.self_attn"
    wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    parts = ("q_proj", "k_proj", "v_proj")
    qkv = t.linear(
        x,
        t.matrix(tuple(f"{name}.{p}.weight" for p in parts), (wide, narrow, narrow), spec.hidden),
        tuple(f"{name}.{p}.bias" for p in parts) if dims.qkv_bias else (),
        role="attention",
    )
    norms = (f"{name}.q_norm.weight", f"{name}.k_norm.weight") if dims.qk_norm else None
    out = t.cached_attention(cache, layer, qkv, cos, sin, norms, dims.eps)
    return t.linear(
        out,
        t.matrix((f"{name}.o_proj.weight",), (spec.hidden,), wide),
        (f"{name}.o_proj.bias",) if dims.out_bias else (),
        role="attention_out",
    )


def mlp(t: Target, dims: DecoderDims, x: Value, layer: int) -> Value:
    """A layer's SwiGLU."""
    return swiglu(t, dims, x, f"{MODEL}.layers.{layer}.mlp")


def swiglu(t: Target, dims: DecoderDims, x: Value, name: str) -> Value:
    """down(silu(gate x) * (up x)); gate and up run as one matrix."""
    hidden, inner = dims.spec.hidden, dims.intermediate
    weights = (f"{name}.gate_proj.weight", f"{name}.up_proj.weight")
    x = t.gated_linear(x, t.matrix(weights, (inner, inner), hidden), (), role="mlp")
    return t.linear(x, t.matrix((f"{name}.down_proj.weight",), (hidden,), inner), (), role="down_proj")


def experts(t: Target, dims: DecoderDims, sizes: ExpertDims, x: Value, name: str) -> Value:
    """A mixture of experts in the MLP's place."""
    count, hidden, inner = dims.spec.experts, dims.spec.hidden, sizes.intermediate
    return t.experts(
        x,
        t.matrix((f"{name}.gate.weight",), (count,), hidden),
        t.expert_stack(f"{name}.experts.gate_up_proj", count, 2 * inner, hidden),
        t.expert_stack(f"{name}.experts.down_proj", count, hidden, inner),
        dims.spec.experts_used,
    )


def feed_forward(t: Target, dims: DecoderDims, x: Value, layer: int) -> Value:
    """What a layer has behind its attention."""
    if dims.experts is not None and layer in dims.experts.layers:
        return experts(t, dims, dims.experts, x, f"{MODEL}.layers.{layer}.mlp")
    return mlp(t, dims, x, layer)


def build_decoder(t: Target, dims: DecoderDims, caches: tuple[LayerCache, ...]) -> None:
    """inputs_embeds and the caches in, logits of the last `last_k` tokens and the caches out."""
    spec = dims.spec
    embeds = t.input("inputs_embeds", "float32", (1, "s", spec.hidden))
    cos = t.input("rope_cos", "float32", ("s", spec.head_dim // 2))
    sin = t.input("rope_sin", "float32", ("s", spec.head_dim // 2))
    deepstack = t.input("deepstack", "float32", (spec.deepstack, "s", spec.hidden)) if spec.deepstack else None
    last_k = t.input("last_k", "int64", (1,))
    cache = t.cache(spec, caches)
    x = t.reshape(embeds, (-1, spec.hidden))
    delta: Value | None = None  # output of the last sub-layer, not yet added to x
    for i in range(spec.layers):
        name = f"{MODEL}.layers.{i}"
        with t.scope(f"layer.{i}"):
            normed, x = t.add_rms_norm(x, delta, f"{name}.input_layernorm.weight", dims.eps)
            delta = attention(t, dims, cache, normed, i, cos, sin)
            normed, x = t.add_rms_norm(x, delta, f"{name}.post_attention_layernorm.weight", dims.eps)
            delta = feed_forward(t, dims, normed, i)
            if deepstack is not None and i < spec.deepstack:
                delta = t.add(delta, t.pick(deepstack, i))
    with t.scope("head"):
        x = t.last_rows(x if delta is None else t.add(x, delta), last_k)
        x = t.rms_norm(x, f"{MODEL}.norm.weight", dims.eps)
        head = EMBEDDING if dims.tied else HEAD
        logits = t.linear(x, t.matrix((head,), (spec.vocab,), spec.hidden), (), role="head")
    t.output(t.reshape(logits, (1, -1, spec.vocab)), "logits", "float32", (1, "last_k", spec.vocab))
    cache.finish()
