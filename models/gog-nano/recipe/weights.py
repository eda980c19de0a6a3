"""Training checkpoint -> Hugging Face folder: fp16 safetensors, configuration, tokenizer, template, preprocessing.

``python -m recipe.weights CHECKPOINT --tokenizer DIR --out models/gog-nano``. The folder loads with
AutoModelForImageTextToText and exports with ``gog-edge export``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import geometry
from .model import MERGE, PATCH, Dims, Nano
from .vocabulary import PLAIN, SIZE, SPECIAL

HERE = Path(__file__).resolve().parent
FIRST = SIZE - len(SPECIAL) - len(PLAIN)
IDS = {token: FIRST + i for i, token in enumerate((*SPECIAL, *PLAIN))}


def load_net(path: Path) -> Nano:
    """The float32 module of a training checkpoint of the joint (or text) phase, tower included."""
    saved = torch.load(path, weights_only=False)
    net = Nano(Dims(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["dims"].items()}))
    state = net.state_dict()
    masters = {k.removeprefix("net."): v for k, v in saved["masters"]["masters"].items() if k.startswith("net.")}
    state.update({f"visual.{k}": v for k, v in saved["tower"].items()})
    state.update(masters)
    net.load_state_dict(state)
    return net.eval()


def hf_state(net: Nano) -> dict[str, Tensor]:
    """Parameters under their Hugging Face names; the two temporal slices of the patch embedding share its weight."""
    out: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        if name == "visual.patch_embed.weight":
            folded = value.view(-1, 3, 1, PATCH, PATCH) / 2
            out["model.visual.patch_embed.proj.weight"] = folded.expand(-1, -1, 2, -1, -1).contiguous()
        elif name == "visual.patch_embed.bias":
            out["model.visual.patch_embed.proj.bias"] = value
        else:
            out[f"model.{name}"] = value
    return out


def configuration(d: Dims) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "dtype": "float16",
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": d.vocab,
            "hidden_size": d.hidden,
            "intermediate_size": d.mlp,
            "num_hidden_layers": d.layers,
            "num_attention_heads": d.heads,
            "num_key_value_heads": d.kv_heads,
            "head_dim": d.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_cache": True,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": d.theta,
                "mrope_section": list(d.mrope),
                "mrope_interleaved": True,
            },
            "bos_token_id": IDS["<|endoftext|>"],
            "eos_token_id": IDS["<|im_end|>"],
            "pad_token_id": IDS["<|endoftext|>"],
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": d.v_depth,
            "hidden_size": d.v_hidden,
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": d.v_mlp,
            "num_heads": d.v_heads,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": d.hidden,
            "num_position_embeddings": d.v_side**2,
            "deepstack_visual_indexes": list(d.v_deepstack),
        },
    }


def preprocessing() -> dict[str, Any]:
    low, high = geometry.GLANCE_PIXELS
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3VLProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": low, "longest_edge": high},
    }


def write(net: Nano, tokenizer: Path, out: Path) -> None:
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in hf_state(net).items()}, out / "model.safetensors", {"format": "pt"})
    generation = {
        "do_sample": False,
        "eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]],
        "pad_token_id": IDS["<|endoftext|>"],
    }
    for name, content in (
        ("config.json", configuration(net.d)),
        ("preprocessor_config.json", preprocessing()),
        ("generation_config.json", generation),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)
    shutil.copyfile(HERE / "chat_template.jinja", out / "chat_template.jinja")
    dialect = HERE.parent / "dialect.toml"
    if (out / "dialect.toml").resolve() != dialect:
        shutil.copyfile(dialect, out / "dialect.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write(load_net(options.checkpoint), options.tokenizer, options.out)


if __name__ == "__main__":
    main()
