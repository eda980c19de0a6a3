"""Drives a bundle's two graphs with ONNX Runtime and nothing of the runtime but its layout: what the graphs mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from gog_edge.bundle import Bundle
from gog_edge.engines.base import cached_bias, causal_bias, new_bias
from gog_edge.families.layout import token_count
from gog_edge.runtime.decoder import Rotary
from gog_edge.runtime.vision import vision_inputs
from tests.families.sequence import sequence_positions, text_positions


def session(bundle: Bundle, graph: str, optimise: bool = True) -> ort.InferenceSession:
    """A CPU session of one graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    spec = bundle.manifest.graphs[graph]
    if "ai.gog_edge" in spec.domains:
        from gog_edge.native.dispatch import register

        assert register(options) is None
    return ort.InferenceSession(str(bundle.root / spec.file), options, providers=["CPUExecutionProvider"])


@dataclass
class Conversation:
    """Tokens with images: ids, grids and patches in order, as a test makes them up."""

    ids: np.ndarray
    grids: list[tuple[int, int]]
    patches: list[np.ndarray]


def conversation(bundle: Bundle, grids: list[tuple[int, int]], seed: int = 0, words: int = 5) -> Conversation:
    """`words` random tokens, an image, and so on for every grid, and random tokens at the end."""
    rng = np.random.default_rng(seed)
    tokens, pre = bundle.manifest.tokens, bundle.manifest.preprocessing
    ids: list[int] = []
    patches = []
    for rows, columns in grids:
        ids += [int(i) for i in rng.integers(3, 500, words)]
        count = token_count(rows, columns, pre.merge_size)
        ids += [tokens.vision_start, *[tokens.image_pad] * count, tokens.vision_end]
        patches.append(rng.standard_normal((rows * columns, pre.patch_values), np.float32))
    ids += [int(i) for i in rng.integers(3, 500, words + 2)]
    return Conversation(np.array(ids), grids, patches)


def embedding(bundle: Bundle) -> np.ndarray:
    """The whole table as float32."""
    spec = bundle.manifest.embedding
    raw = bundle.path(spec.file).read_bytes()
    if spec.dtype != "int8":
        return np.frombuffer(raw, spec.dtype).reshape(spec.rows, spec.columns).astype(np.float32)
    q = np.frombuffer(raw, np.int8, spec.rows * spec.columns).reshape(spec.rows, spec.columns)
    return q * np.frombuffer(raw, np.float32, spec.rows, q.size)[:, None]


@dataclass
class Runner:
    """One bundle and one KV cache."""

    bundle: Bundle
    capacity: int = 128
    optimise: bool = True
    past: int = 0
    cache: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vision = session(self.bundle, "vision", self.optimise)
        self.decoder = session(self.bundle, "decoder", self.optimise)
        self.spec = self.bundle.manifest.decoder
        self.rotary = Rotary(self.bundle.manifest)
        self.table = embedding(self.bundle)
        for tensor in self.bundle.manifest.graphs["decoder"].inputs:
            if tensor.name.startswith("past_key_values"):
                shape = [self.capacity if dim == "cap" else int(dim) for dim in tensor.shape]
                self.cache[tensor.name] = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, tensor.dtype))
        self.names = {tensor.name for tensor in self.bundle.manifest.graphs["decoder"].inputs}
        self.outputs = {tensor.name for tensor in self.bundle.manifest.graphs["decoder"].outputs}

    def encode(self, patches: np.ndarray, grid: tuple[int, int]) -> list[np.ndarray]:
        """[features] or [features, deepstack]."""
        return list(self.vision.run(None, {"patches": patches, **vision_inputs(self.bundle.manifest, *grid)}))

    def inputs(self, talk: Conversation) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
        """(embeddings [s, H], positions [3, s], deepstack [D, s, H], next position) of a whole conversation."""
        encoded = [self.encode(p, g) for p, g in zip(talk.patches, talk.grids)]
        manifest = self.bundle.manifest
        image = talk.ids == manifest.tokens.image_pad
        x = self.table[talk.ids].copy()
        deepstack = np.zeros((self.spec.deepstack, len(talk.ids), self.spec.hidden), np.float32)
        if encoded:
            x[image] = np.concatenate([e[0] for e in encoded])
            if self.spec.deepstack:
                deepstack[:, image] = np.concatenate([e[1] for e in encoded], axis=1)
        positions, after = sequence_positions(
            talk.ids, manifest.tokens.image_pad, talk.grids, manifest.preprocessing.merge_size
        )
        return x, positions, deepstack if self.spec.deepstack else None, after

    def step(
        self, x: np.ndarray, positions: np.ndarray, deepstack: np.ndarray | None = None, last_k: int = 1
    ) -> np.ndarray:
        """Append rows x [s, H] to the cache, read if there are several; logits [last_k, V]."""
        count = len(x)
        cos, sin = self.rotary(positions)
        feeds: dict[str, Any] = {
            "inputs_embeds": x[None],
            "rope_cos": cos,
            "rope_sin": sin,
            "last_k": np.array([last_k], np.int64),
            "seqlens_k": np.array([self.past + count - 1], np.int32),
            "total_sequence_length": np.array(self.past + count, np.int32),
            "write_indices": np.array([self.past], np.int64),
            "attention_bias": causal_bias(self.past, count, self.capacity),
            "new_bias": new_bias(count),
            "prefill_rows": np.array([0, count if count > 1 else 0], np.int32),
        }
        if self.spec.deepstack:
            empty = np.zeros((self.spec.deepstack, count, self.spec.hidden), np.float32)
            feeds["deepstack"] = empty if deepstack is None else deepstack
        plain = "new_bias" in self.names
        if plain:
            feeds["attention_bias"] = cached_bias(self.past, count, self.capacity)
        binding = self.decoder.io_binding()
        for name in self.names & feeds.keys():
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
        binding.bind_output("logits", "cpu")
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
            present = name.replace("past_key_values", "present")
            if present in self.outputs:
                binding.bind_ortvalue_output(present, value)
        for name in self.cache if plain else ():
            binding.bind_output(name.replace("past_key_values", "new"), "cpu")
        self.decoder.run_with_iobinding(binding)
        for value, new in zip(self.cache.values(), binding.get_outputs()[1:] if plain else ()):
            array = value.numpy()
            array[:, :, self.past : self.past + count] = new.numpy()
            value.update_inplace(array)
        self.past += count
        logits: np.ndarray = binding.get_outputs()[0].numpy()[0]
        return logits

    def greedy(self, logits: np.ndarray, position: int, count: int) -> list[int]:
        """Decode `count` tokens from the last row of `logits`, the first at M-RoPE `position`."""
        out = []
        for i in range(count):
            token = int(logits[-1].argmax())
            out.append(token)
            logits = self.step(self.table[[token]], text_positions(position + i, 1))
        return out
