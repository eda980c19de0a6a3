"""Configurations of synthetic checkpoints: the published sizes of all families, and tiny ones with odd shapes.

Sizes come from `gog_edge.shapes`; what a whole family shares is written as the config.json files of
Qwen/Qwen2.5-VL-*-Instruct and Qwen/Qwen3-VL-*-Instruct spell it (flat text configuration and `rope_scaling` for
Qwen2.5-VL).
"""

from __future__ import annotations

import difflib
from typing import Any

from gog_edge.errors import UsageError
from gog_edge.export.synthetic.hybrid import FIRST_SPECIAL, hybrid_config, hybrid_moe_config
from gog_edge.shapes import HEAD_DIM, MERGE, SHAPES, VISION_HEADS, PolicyShape

TINY = (
    *("tiny-qwen3-vl", "tiny-qwen3-vl-untied", "tiny-qwen3-vl-moe"),
    *("tiny-qwen2.5-vl", "tiny-qwen2.5-vl-tied", "tiny-qwen3.5", "tiny-qwen3.5-moe"),
)
NAMES = (*TINY, *SHAPES)
FULL_SPECIALS = 151643  # id of <|endoftext|>, the first special token of the Qwen vocabularies
TINY_SPECIALS = 640


def model_config(name: str) -> dict[str, Any]:
    """config.json of a synthetic checkpoint.

    Raises:
        UsageError: no such name.
    """
    shape = SHAPES.get(name)
    if shape is not None and shape.family.startswith("qwen3_5"):
        hybrid = hybrid_config(shape, _ids(FIRST_SPECIAL))
        return hybrid_moe_config(hybrid, shape.experts, shape.top, shape.intermediate) if shape.experts else hybrid
    if shape is not None:
        return {"qwen3_vl": _qwen3, "qwen3_vl_moe": _qwen3_moe, "qwen2_5_vl": _qwen2_5}[shape.family](shape)
    if name == "tiny-qwen3-vl-moe":
        return _tiny_qwen3_moe()
    if name == "tiny-qwen3.5":
        return _tiny_hybrid()
    if name == "tiny-qwen3.5-moe":
        config = hybrid_moe_config({**_tiny_hybrid(), "tie_word_embeddings": False}, 10, 3, 44)
        config["text_config"]["tie_word_embeddings"] = False
        return config
    if name in TINY:
        return _tiny_qwen3(name.endswith("untied")) if "qwen3" in name else _tiny_qwen2_5(name.endswith("-tied"))
    close = difflib.get_close_matches(name, NAMES, 1)
    hint = f"did you mean {close[0]}?" if close else "known: " + ", ".join(NAMES)
    raise UsageError(f"no synthetic checkpoint is called {name!r}; {hint}")


def first_special(config: dict[str, Any]) -> int:
    """Id of <|endoftext|>; the other special tokens follow in Qwen's order."""
    return int(config["image_token_id"]) - 12


def _ids(base: int) -> dict[str, int]:
    return {
        "vision_start_token_id": base + 9,
        "vision_end_token_id": base + 10,
        "image_token_id": base + 12,
        "video_token_id": base + 13,
    }


def _qwen2_5(shape: PolicyShape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": FULL_SPECIALS,
        "eos_token_id": FULL_SPECIALS + 2,
        "vision_token_id": FULL_SPECIALS + 11,
        **_ids(FULL_SPECIALS),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": shape.vision_depth,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": shape.vision_hidden,
            "in_chans": 3,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": VISION_HEADS,
            "out_hidden_size": shape.hidden,
            "patch_size": shape.patch,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": shape.patch,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


def _qwen3(shape: PolicyShape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **_ids(FULL_SPECIALS),
        "tie_word_embeddings": shape.tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": FULL_SPECIALS,
            "dtype": "bfloat16",
            "eos_token_id": FULL_SPECIALS + 2,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": shape.hidden,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate,
            "max_position_embeddings": shape.context,
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": shape.tied,
            "use_cache": True,
            "vocab_size": shape.vocab,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": list(shape.taps),
            "depth": shape.vision_depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": shape.vision_hidden,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": VISION_HEADS,
            "num_position_embeddings": 2304,
            "out_hidden_size": shape.hidden,
            "patch_size": shape.patch,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
    }


def _qwen3_moe(shape: PolicyShape) -> dict[str, Any]:
    config = _qwen3(shape)
    config.update(architectures=["Qwen3VLMoeForConditionalGeneration"], model_type="qwen3_vl_moe")
    config["text_config"].update(
        model_type="qwen3_vl_moe_text",
        decoder_sparse_step=1,
        intermediate_size=3 * shape.hidden,  # of layers without experts, of which there are none
        mlp_only_layers=[],
        moe_intermediate_size=shape.intermediate,
        norm_topk_prob=True,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top,
    )
    config["vision_config"]["model_type"] = "qwen3_vl_moe"
    return config


def _tiny_qwen3_moe() -> dict[str, Any]:
    """Two layers with experts among four, which no power of two counts."""
    config, tiny = _qwen3_moe(SHAPES["qwen3-vl-30b-a3b"]), _tiny_qwen3(untied=True)
    for key in ("text_config", "vision_config"):
        config[key] |= {k: v for k, v in tiny[key].items() if k != "model_type"}
    config["text_config"].update(
        decoder_sparse_step=2, mlp_only_layers=[], moe_intermediate_size=44, num_experts=6, num_experts_per_tok=2
    )
    return {**tiny, **{k: config[k] for k in ("architectures", "model_type", "text_config", "vision_config")}}


def _tiny_qwen3(untied: bool) -> dict[str, Any]:
    """Head size given and not hidden / heads, GQA 3:1, sizes that no block of 32 divides."""
    config = _qwen3(SHAPES["qwen3-vl-2b"])
    config.update(_ids(TINY_SPECIALS), tie_word_embeddings=not untied)
    config["text_config"].update(
        bos_token_id=TINY_SPECIALS,
        eos_token_id=TINY_SPECIALS + 2,
        head_dim=24,
        hidden_size=56,
        intermediate_size=100,
        max_position_embeddings=4096,
        num_attention_heads=6,
        num_hidden_layers=4,
        num_key_value_heads=2,
        rope_scaling={"mrope_interleaved": True, "mrope_section": [5, 4, 3], "rope_type": "default"},
        tie_word_embeddings=not untied,
        vocab_size=691,
    )
    config["vision_config"].update(
        deepstack_visual_indexes=[0, 2],
        depth=4,
        hidden_size=60,
        intermediate_size=76,
        num_heads=3,
        num_position_embeddings=49,
        out_hidden_size=56,
    )
    return config


def _tiny_qwen2_5(tied: bool) -> dict[str, Any]:
    """Head size derived (24), GQA 3:1, windows of 2 x 2 merged tokens, two layers with full attention."""
    config = _qwen2_5(SHAPES["qwen2.5-vl-3b"])
    config.update(
        _ids(TINY_SPECIALS),
        bos_token_id=TINY_SPECIALS,
        eos_token_id=TINY_SPECIALS + 2,
        vision_token_id=TINY_SPECIALS + 11,
        hidden_size=72,
        intermediate_size=100,
        max_position_embeddings=4096,
        max_window_layers=3,
        num_attention_heads=3,
        num_hidden_layers=3,
        num_key_value_heads=1,
        rope_scaling={"type": "mrope", "mrope_section": [2, 5, 5]},
        tie_word_embeddings=tied,
        vocab_size=691,
    )
    config["vision_config"].update(
        depth=4,
        fullatt_block_indexes=[1, 3],
        hidden_size=60,
        intermediate_size=76,
        num_heads=3,
        out_hidden_size=72,
        window_size=56,
    )
    return config


def _tiny_hybrid() -> dict[str, Any]:
    """Layer types given and not the usual ones, 3 value heads to a key head, GQA 2:1, a convolution of 3 tokens, sizes
    that no block of 32 divides."""
    config = hybrid_config(SHAPES["qwen3.5-0.8b"], _ids(TINY_SPECIALS))
    config["text_config"].update(
        eos_token_id=TINY_SPECIALS,
        head_dim=32,
        hidden_size=56,
        intermediate_size=100,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"],
        linear_conv_kernel_dim=3,
        linear_key_head_dim=20,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
        linear_value_head_dim=12,
        max_position_embeddings=4096,
        num_attention_heads=4,
        num_hidden_layers=5,
        num_key_value_heads=2,
        vocab_size=691,
    )
    config["text_config"]["rope_parameters"].update(
        mrope_section=[3, 3, 2], partial_rotary_factor=0.5, rope_theta=10000
    )
    config["vision_config"].update(
        depth=3, hidden_size=60, intermediate_size=76, num_heads=3, num_position_embeddings=49, out_hidden_size=56
    )
    return config
