"""Safetensors files and packed layers for tests, written independently of the package's readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def write_checkpoint(root: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Path:
    """A one-file checkpoint folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(config or {"model_type": "qwen3_vl"}))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, root / "model.safetensors")
    return root


def write_sharded(root: Path, tensors: dict[str, np.ndarray], shards: int) -> Path:
    """The same, spread over several files with an index."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {k: v for j, (k, v) in enumerate(sorted(tensors.items())) if j % shards == i}
        save_file(part, root / name)
        weight_map.update(dict.fromkeys(part, name))
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return root


def pack(fields: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned fields [..., k] to int32 words [..., k * bits / 32], lowest bits first."""
    per = 32 // bits
    words = np.zeros((*fields.shape[:-1], fields.shape[-1] // per), np.uint32)
    for i in range(per):
        words |= fields[..., i::per].astype(np.uint32) << np.uint32(i * bits)
    return words.view(np.int32)


def pack_awq(q: np.ndarray, zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AWQ gemm words of q [in, out] and zeros [groups, out]: nibble i of a word holds output (0 2 4 6 1 3 5 7)[i]."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def words(fields: np.ndarray) -> np.ndarray:
        out = np.zeros((fields.shape[0], fields.shape[1] // 8), np.uint32)
        for column in range(out.shape[1]):
            for i in range(8):
                out[:, column] |= fields[:, column * 8 + order[i]].astype(np.uint32) << np.uint32(4 * i)
        return out.view(np.int32)

    return words(q), words(zeros)
