"""Checkpoints with seeded random weights in the exact layout of published ones, written shard by shard.

They stand in for real policies where only shapes matter: export, memory, speed, numerical parity. Random weights say
nothing about answer quality, and little about quantisation (no outlier channels, no structure).
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk.leftovers import scratch_folder
from gog_edge.errors import UsageError
from gog_edge.export.checkpoint.shards import narrow_bf16
from gog_edge.export.synthetic.configs import TINY, first_special, model_config
from gog_edge.export.synthetic.hybrid import hybrid_decoder
from gog_edge.export.synthetic.text import (
    CHAT_TEMPLATE,
    generation_config,
    preprocessor_config,
    tokenizer_config,
    tokenizer_json,
)

Spelling = Literal["published", "v5"]
Progress = Callable[[int, int], None]
_STORED = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
_CHUNK = 1 << 22  # values drawn at once


@dataclass(frozen=True)
class _Tensor:
    """One tensor to draw: normal with `mean` and `std`."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


def make_checkpoint(
    name: str,
    out: str | Path,
    seed: int = 0,
    dtype: str = "bfloat16",
    *,
    shard_bytes: int = 2 << 30,
    spelling: Spelling = "published",
    overrides: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the synthetic checkpoint `name` (see synthetic_configs.NAMES) into the new folder `out`.

    Args:
        seed: of the weights; the same seed gives the same bytes.
        dtype: bfloat16, float16 or float32.
        spelling: of weight names and configuration: as the family publishes them, or as transformers 5 writes them.
        overrides: values put over the configuration; `text_config` and `vision_config` are merged.
        progress: called with (bytes written, bytes in all).

    Raises:
        UsageError: unknown name or type, `out` exists, or the disk has not enough room.
    """
    if dtype not in _STORED:
        raise UsageError(f"dtype {dtype!r} is not known: bfloat16, float16 or float32")
    config = _merge(model_config(name), overrides or {})
    config = _spell_config(config, spelling, dtype)
    tensors = list(_tensors(config, spelling))
    rename = _published_name if spelling == "published" and config["model_type"] == "qwen2_5_vl" else str
    target = Path(out)
    if target.exists():
        raise UsageError(f"{target} exists already: choose another folder")
    total = sum(math.prod(t.shape) for t in tensors) * _STORED[dtype][1]
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if total + (64 << 20) > free:
        raise UsageError(f"{name} needs {total / 1e9:.1f} GB at {target.parent}, which has {free / 1e9:.1f} GB free")
    with scratch_folder(target) as partial:
        _write_small_files(partial, config, name in TINY)
        _write_shards(partial, tensors, rename, seed, dtype, shard_bytes, total, progress)
        partial.rename(target)
    return target


def _merge(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _spell_config(config: dict[str, Any], spelling: Spelling, dtype: str) -> dict[str, Any]:
    """The configuration as published, or nested with `rope_parameters` as transformers 5 saves it."""
    config = dict(config)
    text = dict(config.get("text_config", {}))
    if spelling == "published":
        config["torch_dtype"] = dtype
        return config
    vision = {**config["vision_config"], "model_type": f"{config['model_type']}_vision"}
    if "in_chans" in vision:
        vision["in_channels"] = vision.pop("in_chans")
    if not text:  # Qwen2.5-VL publishes a flat one
        outer = {"architectures", "model_type", "vision_config", "tie_word_embeddings", "torch_dtype"}
        text = {k: v for k, v in config.items() if k not in outer and not k.endswith("_token_id")}
        text |= {k: config[k] for k in ("bos_token_id", "eos_token_id")}
        text["model_type"] = f"{config['model_type']}_text"
        config = {k: v for k, v in config.items() if k in outer or k.endswith("_token_id")}
    if "rope_scaling" in text:  # Qwen3.5 is published in the new spelling
        rope = dict(text.pop("rope_scaling"))
        rope.pop("type", None)
        text["rope_parameters"] = {**rope, "rope_type": "default", "rope_theta": text.pop("rope_theta")}
    if config["model_type"] == "qwen3_vl_moe":
        text["num_local_experts"] = text.pop("num_experts")
    config.pop("torch_dtype", None)
    return {**config, "dtype": dtype, "text_config": {**text, "dtype": dtype}, "vision_config": vision}


def _published_name(name: str) -> str:
    """Qwen2.5-VL's files say visual.… and model.layers.…"""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def _tensors(config: dict[str, Any], spelling: Spelling = "published") -> Iterator[_Tensor]:
    """All tensors of the checkpoint. Layers that feed the residual stream are damped by the depth."""
    text: dict[str, Any] = config.get("text_config") or config
    hidden, vocab = text["hidden_size"], text["vocab_size"]
    qwen3, hybrid = config["model_type"] != "qwen2_5_vl", config["model_type"].startswith("qwen3_5")
    yield from _vision_qwen3(config["vision_config"]) if qwen3 else _vision_qwen2_5(config["vision_config"])
    language = "model.language_model."
    # As a tied head it makes logits with a deviation of about 4, as a real policy has; larger ones blow up every KL.
    yield _Tensor(f"{language}embed_tokens.weight", (vocab, hidden), min(0.5, 4.3 / math.sqrt(hidden)))
    head_dim = text.get("head_dim") or hidden // text["num_attention_heads"]
    queries, keys = text["num_attention_heads"] * head_dim, text["num_key_value_heads"] * head_dim
    damp = 1 / math.sqrt(2 * text["num_hidden_layers"])
    inner = text.get("intermediate_size", 0)
    if hybrid:
        yield from (_Tensor(*draw) for draw in hybrid_decoder(text))
    step, dense = text.get("decoder_sparse_step", 1), text.get("mlp_only_layers", [])
    layers = range(text["num_hidden_layers"] if _experts_of(text) else 0)
    sparse = {i for i in layers if i not in dense and (i + 1) % step == 0}
    for i in range(0 if hybrid else text["num_hidden_layers"]):
        layer = f"{language}layers.{i}."
        yield from _linear(f"{layer}self_attn.q_proj", queries, hidden, bias=not qwen3)
        yield from _linear(f"{layer}self_attn.k_proj", keys, hidden, bias=not qwen3)
        yield from _linear(f"{layer}self_attn.v_proj", keys, hidden, bias=not qwen3)
        yield from _linear(f"{layer}self_attn.o_proj", hidden, queries, damp)
        if qwen3:
            yield _Tensor(f"{layer}self_attn.q_norm.weight", (head_dim,), 0.1, 1.0)
            yield _Tensor(f"{layer}self_attn.k_norm.weight", (head_dim,), 0.1, 1.0)
        if i in sparse:
            yield from _experts(f"{layer}mlp.", text, damp, spelling)
        else:
            yield from _linear(f"{layer}mlp.gate_proj", inner, hidden)
            yield from _linear(f"{layer}mlp.up_proj", inner, hidden)
            yield from _linear(f"{layer}mlp.down_proj", hidden, inner, damp)
        yield _Tensor(f"{layer}input_layernorm.weight", (hidden,), 0.1, 1.0)
        yield _Tensor(f"{layer}post_attention_layernorm.weight", (hidden,), 0.1, 1.0)
    # Mean 0: else a tied head would find each token most similar to itself and greedy decoding would only repeat.
    yield _Tensor(f"{language}norm.weight", (hidden,), 1.0, -1.0 if hybrid else 0.0)
    tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    if not tied:
        yield _Tensor("lm_head.weight", (vocab, hidden), 3 / math.sqrt(hidden))


def _linear(name: str, out: int, inputs: int, gain: float = 1.0, bias: bool = False) -> Iterator[_Tensor]:
    yield _Tensor(f"{name}.weight", (out, inputs), gain / math.sqrt(inputs))
    if bias:
        yield _Tensor(f"{name}.bias", (out,), 0.1)


def _experts(name: str, text: dict[str, Any], damp: float, spelling: Spelling) -> Iterator[_Tensor]:
    """The matrices lie as [inputs, outputs] in the published files, as [outputs, inputs] in those of transformers 5."""
    count, hidden, inner = _experts_of(text), text["hidden_size"], text["moe_intermediate_size"]
    turn = -1 if spelling == "published" else 1
    yield _Tensor(f"{name}gate.weight", (count, hidden), 1 / math.sqrt(hidden))
    yield _Tensor(f"{name}experts.gate_up_proj", (count, *(2 * inner, hidden)[::turn]), 1 / math.sqrt(hidden))
    yield _Tensor(f"{name}experts.down_proj", (count, *(hidden, inner)[::turn]), damp / math.sqrt(inner))


def _experts_of(text: dict[str, Any]) -> int:
    return int(text.get("num_experts") or text.get("num_local_experts") or 0)


def _norm(name: str, width: int, bias: bool) -> Iterator[_Tensor]:
    yield _Tensor(f"{name}.weight", (width,), 0.1, 1.0)
    if bias:
        yield _Tensor(f"{name}.bias", (width,), 0.1)


def _vision_qwen3(vision: dict[str, Any]) -> Iterator[_Tensor]:
    width, inner, p = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    patch = (width, vision["in_channels"], vision["temporal_patch_size"], p, p)
    damp = 1 / math.sqrt(2 * vision["depth"])
    yield _Tensor("model.visual.patch_embed.proj.weight", patch, 1 / math.sqrt(math.prod(patch[1:])))
    yield _Tensor("model.visual.patch_embed.proj.bias", (width,), 0.1)
    yield _Tensor("model.visual.pos_embed.weight", (vision["num_position_embeddings"], width), 0.5)
    for i in range(vision["depth"]):
        block = f"model.visual.blocks.{i}."
        yield from _norm(f"{block}norm1", width, True)
        yield from _norm(f"{block}norm2", width, True)
        yield from _linear(f"{block}attn.qkv", 3 * width, width, bias=True)
        yield from _linear(f"{block}attn.proj", width, width, damp, bias=True)
        yield from _linear(f"{block}mlp.linear_fc1", inner, width, bias=True)
        yield from _linear(f"{block}mlp.linear_fc2", width, inner, damp, bias=True)
    merged = width * vision["spatial_merge_size"] ** 2
    mergers = [("merger", width)]
    mergers += [(f"deepstack_merger_list.{i}", merged) for i in range(len(vision.get("deepstack_visual_indexes", ())))]
    for name, normed in mergers:
        yield from _norm(f"model.visual.{name}.norm", normed, True)
        yield from _linear(f"model.visual.{name}.linear_fc1", merged, merged, bias=True)
        yield from _linear(f"model.visual.{name}.linear_fc2", vision["out_hidden_size"], merged, bias=True)


def _vision_qwen2_5(vision: dict[str, Any]) -> Iterator[_Tensor]:
    width, inner, p = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    channels = vision.get("in_channels") or vision["in_chans"]
    patch = (width, channels, vision["temporal_patch_size"], p, p)
    damp = 1 / math.sqrt(2 * vision["depth"])
    yield _Tensor("model.visual.patch_embed.proj.weight", patch, 1 / math.sqrt(math.prod(patch[1:])))
    for i in range(vision["depth"]):
        block = f"model.visual.blocks.{i}."
        yield from _norm(f"{block}norm1", width, False)
        yield from _norm(f"{block}norm2", width, False)
        yield from _linear(f"{block}attn.qkv", 3 * width, width, bias=True)
        yield from _linear(f"{block}attn.proj", width, width, damp, bias=True)
        yield from _linear(f"{block}mlp.gate_proj", inner, width, bias=True)
        yield from _linear(f"{block}mlp.up_proj", inner, width, bias=True)
        yield from _linear(f"{block}mlp.down_proj", width, inner, damp, bias=True)
    merged = width * vision["spatial_merge_size"] ** 2
    yield from _norm("model.visual.merger.ln_q", width, False)
    yield from _linear("model.visual.merger.mlp.0", merged, merged, bias=True)
    yield from _linear("model.visual.merger.mlp.2", vision["out_hidden_size"], merged, bias=True)


def _write_small_files(root: Path, config: dict[str, Any], tiny: bool) -> None:
    base = first_special(config)
    text = config.get("text_config") or config
    files: dict[str, dict[str, Any]] = {
        "config.json": config,
        "generation_config.json": generation_config(base),
        "preprocessor_config.json": preprocessor_config(
            config["model_type"], config["vision_config"]["patch_size"], tiny
        ),
        "tokenizer.json": tokenizer_json(base),
        "tokenizer_config.json": tokenizer_config(text["max_position_embeddings"]),
    }
    for name, data in files.items():
        (root / name).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (root / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def _write_shards(
    root: Path,
    tensors: list[_Tensor],
    rename: Callable[[str], str],
    seed: int,
    dtype: str,
    shard_bytes: int,
    total: int,
    progress: Progress | None,
) -> None:
    stored, itemsize = _STORED[dtype]
    shards: list[list[_Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        nbytes = math.prod(tensor.shape) * itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes
    weight_map = {}
    quantiles = _quantiles()
    done = 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in shard:
            end = offset + math.prod(tensor.shape) * itemsize
            header[rename(tensor.name)] = {
                "dtype": stored,
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            weight_map[rename(tensor.name)] = name
            offset = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (root / name).open("wb") as f:
            f.write(len(encoded).to_bytes(8, "little") + encoded)
            for tensor in shard:
                for chunk in _draw(tensor, seed, stored, quantiles):
                    f.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def _quantiles() -> NDArray[np.float32]:
    """65,536 quantiles of the standard normal: a draw is then one 16-bit random number and a look-up."""
    normal = NormalDist()
    values = [normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)]
    return np.array(values, np.float32)


def _draw(tensor: _Tensor, seed: int, stored: str, quantiles: NDArray[np.float32]) -> Iterator[bytes]:
    """The tensor's bytes in chunks; its values depend on the seed and its name only."""
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    values = np.float32(tensor.mean) + np.float32(tensor.std) * quantiles
    table: NDArray[Any]
    if stored == "BF16":
        table = narrow_bf16(values)
    else:
        table = values.astype(np.float16 if stored == "F16" else np.float32)
    left = math.prod(tensor.shape)
    while left:
        count = min(left, _CHUNK)
        draws = np.frombuffer(rng.bytes(2 * count), np.uint16)
        yield table[draws].tobytes()
        left -= count
