"""The decoder of a synthetic Qwen3.5 checkpoint: its configuration, and the tensors to draw.

Written as the config.json files of Qwen/Qwen3.5-* spell it. Norms hold what differs from 1, but for those inside the
layers of linear attention; the head that predicts several tokens (MTP) is there as in the published files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gog_edge.shapes import LINEAR_DIM, MERGE, PolicyShape

FIRST_SPECIAL = 248044  # id of <|endoftext|> in the vocabulary of Qwen3.5
Draw = tuple[str, tuple[int, ...], float, float]  # name, shape, deviation, mean
_LANGUAGE = "model.language_model."


def hybrid_config(shape: PolicyShape, ids: dict[str, int]) -> dict[str, Any]:
    """config.json of a published size; `ids`: of the tokens around images."""
    assert shape.linear is not None, "no layers of linear attention"
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        **ids,
        "tie_word_embeddings": shape.tied,
        "text_config": {
            "model_type": "qwen3_5_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "eos_token_id": FIRST_SPECIAL,
            "full_attention_interval": shape.interval,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "hidden_size": shape.hidden,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate,
            "layer_types": [
                "linear_attention" if (i + 1) % shape.interval else "full_attention" for i in range(shape.layers)
            ],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": LINEAR_DIM,
            "linear_num_key_heads": shape.linear[0],
            "linear_num_value_heads": shape.linear[1],
            "linear_value_head_dim": LINEAR_DIM,
            "max_position_embeddings": shape.context,
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "tie_word_embeddings": shape.tied,
            "use_cache": True,
            "vocab_size": shape.vocab,
        },
        "vision_config": {
            "model_type": "qwen3_5",
            "deepstack_visual_indexes": [],
            "depth": shape.vision_depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": shape.vision_hidden,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": shape.vision_heads,
            "num_position_embeddings": 2304,
            "out_hidden_size": shape.hidden,
            "patch_size": shape.patch,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
    }


def hybrid_moe_config(config: dict[str, Any], experts: int, top: int, inner: int) -> dict[str, Any]:
    """`config` with a mixture of `experts` of `inner` in every layer, and a shared one of the same size."""
    text = {key: value for key, value in config["text_config"].items() if key != "intermediate_size"}
    text |= {
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": inner,
        "num_experts": experts,
        "num_experts_per_tok": top,
        "shared_expert_intermediate_size": inner,
    }
    return {
        **config,
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "vision_config": {**config["vision_config"], "model_type": "qwen3_5_moe"},
    }


def hybrid_decoder(text: dict[str, Any]) -> Iterator[Draw]:
    """The decoder's layers and the MTP head. What feeds the residual stream is damped by the depth."""
    damp = 1 / math.sqrt(2 * text["num_hidden_layers"])
    interval = text.get("full_attention_interval") or 4
    kinds = text.get("layer_types")
    for i in range(text["num_hidden_layers"]):
        layer = f"{_LANGUAGE}layers.{i}."
        full = kinds[i] == "full_attention" if kinds else (i + 1) % interval == 0
        yield from _attention(f"{layer}self_attn.", text, damp) if full else _delta(f"{layer}linear_attn.", text, damp)
        yield from _rest(layer, text, damp)
    yield from _mtp(text, damp)


def _attention(name: str, text: dict[str, Any], damp: float) -> Iterator[Draw]:
    hidden, size = text["hidden_size"], text.get("head_dim") or 256
    queries, keys = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    yield _matrix(f"{name}q_proj", 2 * queries, hidden)
    yield _matrix(f"{name}k_proj", keys, hidden)
    yield _matrix(f"{name}v_proj", keys, hidden)
    yield _matrix(f"{name}o_proj", hidden, queries, damp)
    yield f"{name}q_norm.weight", (size,), 0.1, 0.0
    yield f"{name}k_norm.weight", (size,), 0.1, 0.0


def _delta(name: str, text: dict[str, Any], damp: float) -> Iterator[Draw]:
    hidden, heads, taps = text["hidden_size"], text["linear_num_value_heads"], text["linear_conv_kernel_dim"]
    keys, values = text["linear_num_key_heads"] * text["linear_key_head_dim"], heads * text["linear_value_head_dim"]
    yield _matrix(f"{name}in_proj_qkv", 2 * keys + values, hidden)
    yield _matrix(f"{name}in_proj_z", values, hidden)
    yield _matrix(f"{name}in_proj_b", heads, hidden)
    yield _matrix(f"{name}in_proj_a", heads, hidden)
    yield f"{name}conv1d.weight", (2 * keys + values, 1, taps), 1 / math.sqrt(taps), 0.0
    yield f"{name}A_log", (heads,), 0.7, 0.0
    yield f"{name}dt_bias", (heads,), 0.5, -1.0
    yield f"{name}norm.weight", (text["linear_value_head_dim"],), 0.1, 1.0
    yield _matrix(f"{name}out_proj", hidden, values, damp)


def _rest(layer: str, text: dict[str, Any], damp: float) -> Iterator[Draw]:
    hidden = text["hidden_size"]
    if "num_experts" in text:
        yield from _experts(f"{layer}mlp.", text, damp)
    else:
        yield from _mlp(f"{layer}mlp.", hidden, text["intermediate_size"], damp)
    yield f"{layer}input_layernorm.weight", (hidden,), 0.1, 0.0
    yield f"{layer}post_attention_layernorm.weight", (hidden,), 0.1, 0.0


def _mlp(name: str, hidden: int, inner: int, damp: float) -> Iterator[Draw]:
    yield _matrix(f"{name}gate_proj", inner, hidden)
    yield _matrix(f"{name}up_proj", inner, hidden)
    yield _matrix(f"{name}down_proj", hidden, inner, damp)


def _experts(name: str, text: dict[str, Any], damp: float) -> Iterator[Draw]:
    count, hidden, inner = text["num_experts"], text["hidden_size"], text["moe_intermediate_size"]
    yield _matrix(f"{name}gate", count, hidden)
    yield f"{name}experts.gate_up_proj", (count, 2 * inner, hidden), 1 / math.sqrt(hidden), 0.0
    yield f"{name}experts.down_proj", (count, hidden, inner), damp / math.sqrt(inner), 0.0
    yield from _mlp(f"{name}shared_expert.", hidden, text["shared_expert_intermediate_size"], damp)
    yield _matrix(f"{name}shared_expert_gate", 1, hidden)


def _mtp(text: dict[str, Any], damp: float) -> Iterator[Draw]:
    hidden = text["hidden_size"]
    for i in range(text.get("mtp_num_hidden_layers") or 0):
        yield from _attention(f"mtp.layers.{i}.self_attn.", text, damp)
        yield from _rest(f"mtp.layers.{i}.", text, damp)
    if text.get("mtp_num_hidden_layers"):
        yield _matrix("mtp.fc", hidden, 2 * hidden)
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            yield f"mtp.{name}.weight", (hidden,), 0.1, 0.0


def _matrix(name: str, outputs: int, inputs: int, gain: float = 1.0) -> Draw:
    return f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs), 0.0
