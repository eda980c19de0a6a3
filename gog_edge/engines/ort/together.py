"""Several conversations in one run of a native decoder graph.

The weights, which decoding is bound by, are then read once for all of them. The graph is the one that runs a single
conversation: in the place of its caches it is given tables that say where each conversation's own are
(`gog_edge.native.contract`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.base import F32, DecoderInputs, DecoderRun
from gog_edge.engines.ort.cache import BoundRun, OrtKvCache, cache_names
from gog_edge.engines.ort.graph import DTYPES, OrtGraph
from gog_edge.engines.ort.state import state_names
from gog_edge.errors import EngineError

MOST = 8
_WORDS = 4  # of a conversation in a table: address, capacity, rows, total
_BYTES = MOST * _WORDS * 8
_FEW = 32  # rows of a run that is likely to be followed by one like it


class Tables:
    """What is bound in the place of the caches, and the bindings. Not thread-safe: a decoder's runs take turns."""

    def __init__(self, graph: OrtGraph) -> None:
        import onnxruntime

        self._graph = graph
        self._words: list[NDArray[np.int64]] = []
        self._values: list[tuple[str, Any]] = []
        for name in cache_names(graph):
            spec = graph.inputs[name]
            dtype, shape = np.dtype(DTYPES[spec.dtype]), [int(n) if isinstance(n, int) else 1 for n in spec.shape]
            shape[2] = -(-_BYTES // (math.prod(shape) * dtype.itemsize))
            self._add(name, np.zeros(shape, dtype), onnxruntime)
        for name in state_names(graph):
            self._add(name, np.zeros([int(n) for n in graph.inputs[name].shape], np.float32), onnxruntime)
        self._ready: dict[int, BoundRun] = {}
        self._logits: F32 | None = None

    def _add(self, name: str, array: NDArray[Any], onnxruntime: Any) -> None:
        self._values.append((name, onnxruntime.OrtValue.ortvalue_from_numpy(array)))
        self._words.append(array.reshape(-1).view(np.uint8)[:_BYTES].view(np.int64).reshape(MOST, _WORDS))

    def fill(self, caches: Sequence[OrtKvCache], rows: Sequence[int], totals: Sequence[int]) -> None:
        """Say whose rows the next run has."""
        sizes = np.array([[cache.capacity for cache in caches], rows, totals], np.int64).T
        places = np.array([cache.addresses for cache in caches], np.int64)
        for number, table in enumerate(self._words):
            table[: len(caches), 0] = places[:, number]
            table[: len(caches), 1:] = sizes

    def bind(self, rows: int, feeds: Mapping[str, NDArray[Any]], last_k: int, vocab: int) -> BoundRun:
        """A run of `rows` with the values of `feeds`, and logits of the last `last_k`, valid until the next run."""
        run = self._ready.get(rows) if rows == last_k else None
        if run is not None:
            for name, array in feeds.items():
                run.inputs[name][...] = array
            return run
        import onnxruntime

        if self._logits is None or self._logits.shape[1] < last_k:
            self._logits = np.empty((1, max(last_k, _FEW), vocab), np.float32)
            self._ready.clear()  # they write into the old one
        run = BoundRun(self._graph.session.io_binding(), {}, self._logits[:, :last_k])
        for name, value in self._values:
            run.binding.bind_ortvalue_input(name, value)
        for name, array in feeds.items():
            run.inputs[name] = np.array(array)
            run.binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(run.inputs[name]))
        shape = list(run.logits.shape)
        run.binding.bind_output("logits", "cpu", 0, np.float32, shape, run.logits.ctypes.data)
        if rows == last_k <= _FEW:
            self._ready[rows] = run
        return run


def in_order(runs: Sequence[DecoderRun]) -> list[int]:
    """The order of their rows: those that need no logits come first, as only the last rows get any."""
    return sorted(range(len(runs)), key=lambda i: runs[i].inputs.last_k - len(runs[i].inputs.embeds))


def stacked(runs: Sequence[DecoderRun]) -> DecoderInputs:
    """All inputs as those of one run; logits of every row from the first that needs them, of one at least.

    Raises:
        EngineError: more than one of them has rows that are read.
    """
    parts = [run.inputs for run in runs]
    counts = [len(part.embeds) for part in parts]
    begins = [sum(counts[:i]) for i in range(len(parts))]
    total = sum(counts)
    reads = [(at + part.read[0], at + part.read[1]) for at, part in zip(begins, parts) if part.read[0] < part.read[1]]
    if len(reads) > 1:
        raise EngineError("a run can't hold two conversations that are given tokens")
    needed = [at + n - part.last_k for at, n, part in zip(begins, counts, parts) if part.last_k]
    deepstack: F32 | None = None
    for at, n, part in zip(begins, counts, parts):
        if part.deepstack is not None:
            if deepstack is None:
                deepstack = np.zeros((len(part.deepstack), total, part.deepstack.shape[2]), np.float32)
            deepstack[:, at : at + n] = part.deepstack
    return DecoderInputs(
        np.concatenate([part.embeds for part in parts]),
        np.concatenate([part.rope_cos for part in parts]),
        np.concatenate([part.rope_sin for part in parts]),
        deepstack,
        total - min(needed, default=total - 1),
        read=reads[0] if reads else (0, 0),
    )
