"""Configurations of synthetic checkpoints: the published sizes of both families, and tiny ones with odd shapes.

The published values are those of the config.json files of Qwen/Qwen2.5-VL-*-Instruct and Qwen/Qwen3-VL-*-Instruct,
in the spelling those files use (flat text configuration and `rope_scaling` for Qwen2.5-VL).
"""

from __future__ import annotations

import difflib
from typing import Any

from gog_edge.errors import UsageError

# name: (hidden, intermediate, layers, heads, kv heads, tied, vocab, vision intermediate)
_QWEN2_5 = {
    "qwen2.5-vl-3b": (2048, 11008, 36, 16, 2, True, 151936, 3420),
    "qwen2.5-vl-7b": (3584, 18944, 28, 28, 4, False, 152064, 3420),
    "qwen2.5-vl-32b": (5120, 27648, 64, 40, 8, False, 152064, 3456),
}
# name: (hidden, intermediate, layers, heads, kv heads, tied, (vision depth, hidden, intermediate), deepstack)
_QWEN3 = {
    "qwen3-vl-2b": (2048, 6144, 28, 16, 8, True, (24, 1024, 4096), [5, 11, 17]),
    "qwen3-vl-4b": (2560, 9728, 36, 32, 8, True, (24, 1024, 4096), [5, 11, 17]),
    "qwen3-vl-8b": (4096, 12288, 36, 32, 8, False, (27, 1152, 4304), [8, 16, 24]),
    "qwen3-vl-32b": (5120, 25600, 64, 64, 8, False, (27, 1152, 4304), [8, 16, 24]),
}
FULL_SIZES = (*_QWEN3, *_QWEN2_5)
TINY = ("tiny-qwen3-vl", "tiny-qwen3-vl-untied", "tiny-qwen2.5-vl", "tiny-qwen2.5-vl-tied")
NAMES = (*TINY, *FULL_SIZES)
FULL_SPECIALS = 151643  # id of <|endoftext|>, the first special token of the Qwen vocabularies
TINY_SPECIALS = 640


def model_config(name: str) -> dict[str, Any]:
    """config.json of a synthetic checkpoint.

    Raises:
        UsageError: no such name.
    """
    if name in _QWEN2_5:
        return _qwen2_5(name)
    if name in _QWEN3:
        return _qwen3(name)
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


def _qwen2_5(name: str) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, tied, vocab, vision_intermediate = _QWEN2_5[name]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": FULL_SPECIALS,
        "eos_token_id": FULL_SPECIALS + 2,
        "vision_token_id": FULL_SPECIALS + 11,
        **_ids(FULL_SPECIALS),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 128000,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": vision_intermediate,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


def _qwen3(name: str) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, tied, (depth, width, mlp), deepstack = _QWEN3[name]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **_ids(FULL_SPECIALS),
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": FULL_SPECIALS,
            "dtype": "bfloat16",
            "eos_token_id": FULL_SPECIALS + 2,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": intermediate,
            "max_position_embeddings": 262144,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 151936,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": deepstack,
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": width,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": mlp,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _tiny_qwen3(untied: bool) -> dict[str, Any]:
    """Head size given and not hidden / heads, GQA 3:1, sizes that no block of 32 divides."""
    config = _qwen3("qwen3-vl-2b")
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
    config = _qwen2_5("qwen2.5-vl-3b")
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
