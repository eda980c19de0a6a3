"""PEFT LoRA adapters merged into a checkpoint while its tensors are read.

W' = W + s * B A with s = alpha / r (alpha / sqrt(r) for rsLoRA: arXiv 2312.03732); DoRA rescales each row of W' to its
learned magnitude (arXiv 2402.09353). Both work on row ranges, so merging streams like everything else.

What counts is the model that peft runs, with the adapter beside the weights. Where head and embedding are one tensor,
`merge_and_unload` makes another model of it (it adds the change of either to both); the head is loosened here instead.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.lora_config import AdapterConfig
from gog_edge.export.checkpoint.names import bare_name, canonical_name
from gog_edge.export.checkpoint.shards import SafetensorsFile, Source
from gog_edge.families.decoder import EMBEDDING, HEAD

Tensors = dict[str, NDArray[np.float32]]
# `.lora_A.weight`, `.lora_A.default.weight` (some savers keep the adapter's name), `.lora_embedding_A`, magnitude.
_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.[^.]+)*$")


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


@dataclass
class _Adapter:
    """An adapter's tensors under canonical names.

    `parts`: of low-rank changes, by weight; `modules`: the names that the adapter has for these weights' modules.
    `saved`: whole tensors of modules_to_save, the adapter's own copies; `base`: whole tensors that overwrite the base.
    """

    parts: dict[str, Tensors]
    modules: dict[str, str]
    saved: Tensors
    base: Tensors


class LoraSource:
    """A source with an adapter merged in."""

    def __init__(
        self, base: Source, low_rank: dict[str, LowRank], replaced: Tensors, unties: bool = False, hides: bool = False
    ) -> None:
        """`hides`: lm_head is the embedding, whatever the base stores."""
        self._base, self._low_rank, self._replaced = base, low_rank, replaced
        self.unties = unties  # lm_head is a tensor of its own from now on
        self._copied = unties and HEAD not in base.names()  # from the embedding
        self._names = (base.names() | ({HEAD} if unties else set())) - ({HEAD} if hides else set())

    @classmethod
    def open(cls, base: Source, root: Path, tied: bool = False, shared: bool = False) -> LoraSource:
        """Read the adapter in `root`.

        Args:
            tied: config.json ties head and embedding (peft's ensure_weight_tying goes by this).
            shared: and they are one tensor.

        Raises:
            CheckpointError: not a LoRA adapter, a variant that can't be merged right, or tensors that do not fit.
        """
        config = AdapterConfig.read(root)
        adapter = _read(root, config)
        if shared:
            _overwrite_both(root, adapter.base)
        ensured = tied and config.ensure_weight_tying
        if ensured:
            _follow_embedding(root, adapter, drop=shared)
        head = EMBEDDING if HEAD not in base.names() and tied else HEAD  # what lm_head is before the adapter
        low_rank, replaced = {}, {**adapter.base, **adapter.saved}
        for name, values in replaced.items():
            target = head if name == HEAD else name
            if target not in base.names():
                raise CheckpointError(f"{root} holds {name}, which the base checkpoint does not have")
            if values.shape != base.shape(target):
                raise CheckpointError(
                    f"{root}: {name} is {list(values.shape)}, the base has {list(base.shape(target))}"
                    " (a resized vocabulary? export the merged model instead)"
                )
        for weight, found in adapter.parts.items():
            target = head if weight == HEAD else weight
            if target not in base.names():
                raise CheckpointError(f"{root} adapts {weight}, which the base checkpoint does not have")
            names = (adapter.modules[weight], weight.removesuffix(".weight"))
            config.check_targeted(names)
            low_rank[weight] = _low_rank(root, config, weight, names, found, base.shape(target))
        if ensured and not shared and EMBEDDING in low_rank:
            low_rank[HEAD] = low_rank[EMBEDDING]
        touched = {EMBEDDING, HEAD} & (set(low_rank) | set(adapter.saved))
        unties = tied and bool(touched) and not (ensured and shared)
        if shared and not unties:
            replaced.pop(HEAD, None)
        return cls(base, low_rank, replaced, unties, hides=shared and ensured and bool(touched))

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
        return EMBEDDING if name == HEAD and self._copied else name


def _read(root: Path, config: AdapterConfig) -> _Adapter:
    path = root / "adapter_model.safetensors"
    if not path.is_file():
        if (root / "adapter_model.bin").is_file():
            raise CheckpointError(f"{root} has pickled weights only (adapter_model.bin); save it as safetensors")
        raise CheckpointError(f"{root} lacks adapter_model.safetensors; download it again")
    file = SafetensorsFile(path)
    adapter = _Adapter({}, {}, {}, {})
    for stored, info in sorted(file.tensors.items()):
        values = file.rows(stored, 0, info.length)
        match = _PART.match(stored)
        if match:
            weight = canonical_name(match["module"] + ".weight")
            adapter.modules[weight] = bare_name(match["module"])
            adapter.parts.setdefault(weight, {})[match["part"]] = values
        elif "lora_" in stored or "trainable_tokens" in stored:
            raise CheckpointError(f"{root}: {stored} is not understood: merge the adapter with peft first")
        else:  # modules_to_save, trained biases, or embeddings kept beside the adapter
            own = re.sub(r"\.(?:modules_to_save\.[^.]+|base_layer|original_module)\.", ".", stored)
            kind = adapter.saved if config.saves(bare_name(own)) else adapter.base
            kind[canonical_name(own)] = values
    if not (adapter.parts or adapter.saved or adapter.base):
        raise CheckpointError(f"{path} is empty")
    return adapter


def _overwrite_both(root: Path, base: Tensors) -> None:
    """Head and embedding are one tensor in the base: who overwrites one overwrites the other."""
    given = [base[name] for name in (EMBEDDING, HEAD) if name in base]
    if len(given) == 2 and not np.array_equal(given[0], given[1]):
        raise CheckpointError(f"{root} overwrites head and embedding of a tied base differently: merge it with peft")
    if given:
        base[EMBEDDING] = base[HEAD] = given[0]


def _follow_embedding(root: Path, adapter: _Adapter, drop: bool) -> None:
    """peft's ensure_weight_tying: the head has the embedding's adapter; `drop`: and is the embedding itself."""
    for kind in (adapter.parts, adapter.saved):
        if HEAD in kind and EMBEDDING not in kind:
            raise CheckpointError(
                f"{root} has ensure_weight_tying and a change of {HEAD}, but none of the embedding that it is tied to; "
                "save the adapter again"
            )
    if EMBEDDING in adapter.saved:
        head = adapter.saved.pop(HEAD, None)
        if head is not None and not np.array_equal(head, adapter.saved[EMBEDDING]):
            raise CheckpointError(f"{root} has ensure_weight_tying, but head and embedding differ in it")
        if not drop:
            adapter.saved[HEAD] = adapter.saved[EMBEDDING]
    adapter.parts.pop(HEAD, None)


def _low_rank(
    root: Path, config: AdapterConfig, weight: str, modules: tuple[str, ...], parts: Tensors, shape: tuple[int, ...]
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
    elif config.use_dora:
        raise CheckpointError(f"{root} is a DoRA adapter but lacks the magnitudes of {weight}; save it again")
    scale = config.scale(modules, a.shape[0])
    # fan_in_fan_out only concerns GPT-2's Conv1D; peft ignores it for the Linear layers of these families, so do we.
    return LowRank(np.ascontiguousarray(a), np.ascontiguousarray(b), scale, magnitude)
