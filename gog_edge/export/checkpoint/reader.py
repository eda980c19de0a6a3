"""An HF checkpoint as a set of named float tensors: folder or hub id, sharded, pre-quantised or with a LoRA adapter.

Families see one spelling of every weight name (that of transformers 5):
`model.visual.…`, `model.language_model.…`, `lm_head.weight`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gog_edge import families
from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint import hub
from gog_edge.export.checkpoint.experts import stacked_experts
from gog_edge.export.checkpoint.lora import LoraSource
from gog_edge.export.checkpoint.names import canonical_name
from gog_edge.export.checkpoint.prequantized import open_prequantized
from gog_edge.export.checkpoint.shards import ShardSet, Source, foreign_format
from gog_edge.families.base import Family

_ROWS = 4096  # rows compared at once


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Nothing but headers is read until a tensor is asked for."""

    root: Path
    config: dict[str, Any]
    source: Source
    origin: str  # what the user named: folder or hub id
    adapters: tuple[str, ...] = ()
    adapter_roots: tuple[Path, ...] = ()  # where they lie
    _plain: ShardSet | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path_or_hub_id: str | Path, revision: str | None = None) -> Checkpoint:
        """Open a folder, or download a hub id (needs huggingface_hub) and open that.

        Raises:
            CheckpointError: not a checkpoint, unreadable or incomplete weights, or a quantisation that can't be
                exported right.
        """
        root = hub.locate(path_or_hub_id, revision)
        config = _config(root)
        shards = ShardSet.open(root, config.get("transformers_weights"))
        family = families.FAMILIES.get(str(config.get("model_type")))  # an unknown one is refused when it is exported
        source: Source = Renamed(shards, root, family if family is not None and family.tied(config) else None)
        quantised = config.get("quantization_config")
        if quantised is not None:
            source = open_prequantized(source, shards, quantised, root)
        if family is not None:
            source = stacked_experts(source, family)
        return cls(root, config, source, str(path_or_hub_id), _plain=shards)

    def with_lora(self, adapter: str | Path) -> Checkpoint:
        """This checkpoint with a PEFT adapter (folder or hub id) merged into every tensor that is read.

        Raises:
            CheckpointError: not a LoRA adapter, or one that does not fit this checkpoint.
        """
        root = hub.locate(adapter, None)
        flag, embedding = self.family.tied(self.config), self.family.embedding
        shared = flag and embedding in self and self.head == embedding
        merged = LoraSource.open(self.source, root, flag, shared)
        config = _untied(self.config) if merged.unties else self.config
        adapters, roots = (*self.adapters, str(adapter)), (*self.adapter_roots, root)
        return Checkpoint(self.root, config, merged, self.origin, adapters, roots, self._plain)

    @property
    def family(self) -> Family:
        """The family that config.json names."""
        return families.find(self.config)

    @cached_property
    def head(self) -> str:
        """The tensor that makes the logits: the embedding where config.json ties it and no other head is stored.

        Like transformers: a stored lm_head.weight that differs from the embedding is used, whatever the flags say.

        Raises:
            CheckpointError: neither is there.
        """
        head, embedding, tied = self.family.head, self.family.embedding, self.family.tied(self.config)
        if head in self:
            return embedding if tied and self._equal(head, embedding) else head
        if not tied:
            raise CheckpointError(
                f"{self.origin} has no tensor {head} and no tie_word_embeddings in config.json that would put the "
                "embedding in its place (transformers fills it at random): it is incomplete, or the flag is missing"
            )
        self._check(embedding)
        return embedding

    def names(self) -> set[str]:
        """All tensor names, in the transformers 5 spelling."""
        return self.source.names()

    def __contains__(self, name: object) -> bool:
        return name in self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        self._check(name)
        return self.source.shape(name)

    def read(self, name: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """One whole tensor as float32 or float16 (values beyond float16's range are an error).

        Raises:
            CheckpointError: no such tensor, a non-finite value, or one that float16 can't hold.
        """
        shape = self.shape(name)
        return self.read_rows(name, 0, shape[0] if shape else 1, dtype).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Rows start:stop of the first axis; see `read`."""
        self._check(name)
        shape = self.source.shape(name)
        if not 0 <= start <= stop <= (shape[0] if shape else 1):
            raise CheckpointError(f"rows {start}:{stop} of {name} were asked for, its shape is {list(shape)}")
        values = self.source.rows(name, start, stop)
        if not np.isfinite(values.sum(dtype=np.float64)):  # one pass; inf and NaN survive a float64 sum
            raise CheckpointError(f"{name} holds NaN or infinity: the checkpoint is damaged or training diverged")
        if np.dtype(dtype) == np.float32:
            return values
        with np.errstate(over="ignore"):
            cast = values.astype(dtype)
        if not np.isfinite(cast).all():
            raise CheckpointError(f"{name} has values beyond the range of {np.dtype(dtype)}; use another precision")
        return cast

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint such as tokenizer.json, or None."""
        path = self.root / name
        return path if path.is_file() else None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object file of the checkpoint; empty when the file is missing.

        Raises:
            CheckpointError: it is there and is not a JSON object.
        """
        path = self.file(name)
        return _read_object(path) if path else {}

    @property
    def quantization(self) -> str | None:
        """Method of a pre-quantised checkpoint ("awq", "gptq"), whose tensors are read dequantised; else None."""
        config = self.config.get("quantization_config")
        return str(config.get("quant_method")) if isinstance(config, dict) else None

    def forget(self) -> None:
        """Let the kernel drop cached pages of the weight files (after an export)."""
        if self._plain is not None:
            for file in set(self._plain.files.values()):
                file.forget()

    def _equal(self, one: str, other: str) -> bool:
        if self.shape(one) != self.shape(other):
            return False
        rows = self.shape(one)[0]
        spans = ((at, min(at + _ROWS, rows)) for at in range(0, rows, _ROWS))
        return all(np.array_equal(self.read_rows(one, *span), self.read_rows(other, *span)) for span in spans)

    def _check(self, name: str) -> None:
        if name not in self.source.names():
            raise CheckpointError(f"{self.origin} has no tensor {name}: is it a complete checkpoint of this family?")


class Renamed:
    """A source under canonical names.

    `tied`: the family, where config.json ties head and embedding: a head that is stored without the embedding is the
    embedding, too (transformers ties both ways).

    Raises:
        CheckpointError: two stored tensors get the same name.
    """

    def __init__(self, shards: ShardSet, root: Path, tied: Family | None = None) -> None:
        self._shards = shards
        self.stored: dict[str, str] = {}
        for stored in sorted(shards.names()):
            name = canonical_name(stored)
            if name in self.stored:
                raise CheckpointError(f"{root} holds {name} twice: as {self.stored[name]} and as {stored}")
            self.stored[name] = stored
        if tied is not None and tied.head in self.stored:
            self.stored.setdefault(tied.embedding, self.stored[tied.head])
        self._names = set(self.stored)

    def names(self) -> set[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shards.shape(self.stored[name])

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self._shards.rows(self.stored[name], start, stop)


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the flag off on both levels."""
    config = {**config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return config


def _config(root: Path) -> dict[str, Any]:
    path = root / "config.json"
    if not path.is_file():
        if (root / "adapter_config.json").is_file():
            raise CheckpointError(f"{root} is a LoRA adapter: export its base checkpoint with --lora {root}")
        if (root / "manifest.json").is_file():
            raise CheckpointError(f"{root} is a gog-edge bundle already; export needs the HF checkpoint")
        foreign = foreign_format(root)
        if foreign:
            raise CheckpointError(f"{root} {foreign}; export needs the original HF checkpoint")
        raise CheckpointError(f"{root} is not an HF checkpoint: it has no config.json")
    config = _read_object(path)
    if isinstance(config.get("quantization"), dict):  # mlx-lm and mlx-vlm write it; HF says quantization_config
        raise CheckpointError(
            f"{root} is quantised for MLX (quantization in config.json); export needs the original HF checkpoint"
        )
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} can't be read as JSON ({e})") from e
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data
