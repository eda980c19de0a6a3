"""PEFT LoRA adapters merged into a checkpoint while its tensors are read.

W' = W + s * B A with s = alpha / r (alpha / sqrt(r) for rsLoRA: arXiv 2312.03732); DoRA rescales each row of W' to its
learned magnitude (arXiv 2402.09353). Both work on row ranges, so merging streams like everything else.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.shards import SafetensorsFile, Source

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
# `.lora_A.weight`, `.lora_A.default.weight` (some savers keep the adapter's name), `.lora_embedding_A`, magnitude.
_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.[^.]+)*$")
# Adapters that change the base weights when they are attached, so that merging into the stored base would be wrong.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq")
_REFUSED = {
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "layer replication",
    "lora_bias": "biases on lora_B",
    "trainable_token_indices": "trainable token rows",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
}


@dataclass(frozen=True)
class LowRank:
    """The adapter of one weight, as a matrix: `a` [r, in], `b` [out, r]; `magnitude` [out] for DoRA."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None

    def apply(self, weight: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
        """Rows start:stop of the merged weight, from those rows of the base weight."""
        rows = weight.reshape(stop - start, -1)
        merged = rows + np.float32(self.scale) * (self.b[start:stop] @ self.a)
        if self.magnitude is not None:
            norm = np.linalg.norm(merged, axis=1, keepdims=True)
            merged *= self.magnitude[start:stop, None] / norm
        return merged.astype(np.float32, copy=False).reshape(weight.shape)


class LoraSource:
    """A source with an adapter merged in."""

    def __init__(
        self,
        base: Source,
        low_rank: dict[str, LowRank],
        replaced: dict[str, NDArray[np.float32]],
        unties: bool,
    ) -> None:
        self._base, self._low_rank, self._replaced = base, low_rank, replaced
        self.unties = unties  # lm_head differs from the embedding from now on
        self._names = base.names() | ({HEAD} if unties else set())

    @classmethod
    def open(cls, base: Source, root: Path, tied: bool = False) -> LoraSource:
        """Read the adapter in `root`; `tied`: the base model uses the embedding as its head.

        Raises:
            CheckpointError: not a LoRA adapter, a variant that can't be merged right, or tensors that do not fit.
        """
        config = _config(root)
        keep_tied = tied and bool(config.get("ensure_weight_tying"))
        unties = tied and HEAD not in base.names() and not keep_tied
        parts, replaced = _read(root)
        low_rank = {}
        for weight, found in parts.items():
            if keep_tied and weight == HEAD:
                continue
            target = EMBEDDING if weight == HEAD and unties else weight
            if target not in base.names():
                raise CheckpointError(f"{root} adapts {weight}, which the base checkpoint does not have")
            low_rank[weight] = _low_rank(root, config, weight, found, base.shape(target))
        for name, values in replaced.items():
            target = EMBEDDING if name == HEAD and unties else name
            if target not in base.names():
                raise CheckpointError(f"{root} holds {name}, which the base checkpoint does not have")
            if values.shape != base.shape(target):
                raise CheckpointError(
                    f"{root}: {name} is {list(values.shape)}, the base has {list(base.shape(target))}"
                    " (a resized vocabulary? export the merged model instead)"
                )
        touched = {EMBEDDING, HEAD} & (set(low_rank) | set(replaced))
        return cls(base, low_rank, replaced, unties and bool(touched))

    def names(self) -> set[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(self._stored(name))

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        whole = self._replaced.get(name)
        values = self._base.rows(self._stored(name), start, stop) if whole is None else whole[start:stop]
        adapter = self._low_rank.get(name)
        return adapter.apply(values, start, stop) if adapter else values

    def _stored(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.unties else name


def _config(root: Path) -> dict[str, Any]:
    path = root / "adapter_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(f"{root} is not a PEFT adapter: it has no adapter_config.json") from e
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} can't be read as JSON ({e})") from e
    if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{root} is a {kind or 'foreign'} adapter; only LoRA (and DoRA) can be merged")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{root} uses {what} ({key}), which can't be merged: merge it with peft first")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING):
        raise CheckpointError(
            f"{root} was trained with init_lora_weights={init!r}, which changed the base weights: save it with "
            "path_initial_model_for_weight_conversion, or merge it with peft first"
        )
    return config


def _read(root: Path) -> tuple[dict[str, dict[str, NDArray[np.float32]]], dict[str, NDArray[np.float32]]]:
    """(low-rank parts by weight name, whole tensors by name), all under canonical names."""
    from gog_edge.export.checkpoint.reader import canonical_name

    path = root / "adapter_model.safetensors"
    if not path.is_file():
        if (root / "adapter_model.bin").is_file():
            raise CheckpointError(f"{root} has pickled weights only (adapter_model.bin); save it as safetensors")
        raise CheckpointError(f"{root} lacks adapter_model.safetensors; download it again")
    file = SafetensorsFile(path)
    parts: dict[str, dict[str, NDArray[np.float32]]] = {}
    whole: dict[str, NDArray[np.float32]] = {}
    for stored, info in sorted(file.tensors.items()):
        values = file.rows(stored, 0, info.length)
        match = _PART.match(stored)
        if match:
            weight = canonical_name(match["module"] + ".weight")
            parts.setdefault(weight, {})[match["part"]] = values
        elif "lora_" in stored or "trainable_tokens" in stored:
            raise CheckpointError(f"{root}: {stored} is not understood: merge the adapter with peft first")
        else:  # modules_to_save, or trained biases
            name = canonical_name(re.sub(r"\.(?:modules_to_save\.[^.]+|base_layer|original_module)\.", ".", stored))
            whole[name] = values
    if not parts and not whole:
        raise CheckpointError(f"{path} is empty")
    return parts, whole


def _low_rank(
    root: Path, config: dict[str, Any], weight: str, parts: dict[str, NDArray[np.float32]], shape: tuple[int, ...]
) -> LowRank:
    embedding = "lora_embedding_A" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [n for n in names if n not in parts]
    if missing:
        raise CheckpointError(f"{root} lacks {missing[0]} of {weight}; save the adapter again")
    a, b = (parts[n].reshape(parts[n].shape[0], -1) for n in names)
    if embedding:  # delta of the table = (B A)^T with A [r, vocab], B [dim, r]
        a, b = b.T, a.T
    flat = (shape[0], math.prod(shape[1:]))
    if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != flat:
        raise CheckpointError(
            f"{root}: the adapter of {weight} is {list(b.shape)} x {list(a.shape)}, the base weight {list(shape)}"
        )
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None:
        magnitude = magnitude.reshape(-1)
        if magnitude.shape != (flat[0],) or embedding:
            raise CheckpointError(f"{root}: the DoRA magnitudes of {weight} do not fit: merge it with peft first")
    elif config.get("use_dora"):
        raise CheckpointError(f"{root} is a DoRA adapter but lacks the magnitudes of {weight}; save it again")
    rank = a.shape[0]
    alpha = _pattern(config.get("alpha_pattern"), weight, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{root}/adapter_config.json: lora_alpha is not a number")
    scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    # fan_in_fan_out only concerns GPT-2's Conv1D; peft ignores it for the Linear layers of these families, so do we.
    return LowRank(np.ascontiguousarray(a), np.ascontiguousarray(b), scale, magnitude)


def _pattern(patterns: Any, weight: str, default: Any) -> Any:
    """peft's rule: the first pattern that matches the end of the module's name decides."""
    module = weight.removesuffix(".weight")
    for pattern, value in (patterns or {}).items():
        # Patterns name modules as that model did; the end of the name is common to all spellings.
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
