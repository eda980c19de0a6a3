"""The decoder in OpenVINO. Its graph reads the KV cache and gives the new rows, which are written behind the others
here, so the cache is plain host memory that every device is handed as an input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, KvCache, cached_bias, new_bias
from gog_edge.engines.openvino.graph import OvGraph, output, shape
from gog_edge.errors import EngineError
from gog_edge.manifest import Manifest

PAST, NEW = "past_key_values.", "new."
STATE, NEXT = "past_state.", "present_state."


class OvKvCache:
    """Host arrays [1, kv_heads, capacity, head_dim] and the states of recurrent layers, float32."""

    def __init__(self, graph: OvGraph, tokens: int, most: int) -> None:
        self._most = most
        self._specs = {name: spec for name, spec in graph.inputs.items() if name.startswith(PAST)}
        states = {name: spec for name, spec in graph.inputs.items() if name.startswith(STATE)}
        self.capacity = 0
        self.arrays: dict[str, NDArray[Any]] = {}
        self.states = {name: np.zeros(shape(spec, {}), np.float32) for name, spec in states.items()}
        self.seen = 0
        self.requests: dict[tuple[int, int], Any] = {}  # by id of the compiled model and number of tokens
        self.reserve(tokens, 0)

    @property
    def floor(self) -> int:
        """See `RecurrentState.floor`."""
        return self.seen

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.arrays.values(), *self.states.values()))

    def state(self) -> list[NDArray[Any]]:
        """See `RecurrentState.state`."""
        return [array.copy() for array in self.states.values()]

    def set_state(self, seen: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `RecurrentState.set_state`."""
        if [a.shape for a in arrays] != [a.shape for a in self.states.values()]:
            raise EngineError(f"a state of {len(arrays)} arrays does not fit a graph that has {len(self.states)}")
        for own, array in zip(self.states.values(), arrays):
            own[...] = array
        self.seen = seen

    def begin(self, past: int) -> None:
        """A run after `past` tokens is about to start.

        Raises:
            EngineError: the state is after another number of tokens.
        """
        if self.states and past == 0:
            for array in self.states.values():
                array[...] = 0
        elif self.states and past != self.seen:
            raise EngineError(f"the recurrent state is that after {self.seen} tokens, a run after {past} can't use it")

    def reserve(self, tokens: int, keep: int) -> None:
        """See `KvCache.reserve`: capacities double, so that few are ever compiled for."""
        if tokens <= self.capacity:
            return
        capacity = max(self.capacity, 64)
        while capacity < tokens:
            capacity *= 2
        try:
            for name, spec in self._specs.items():
                fresh = np.zeros(shape(spec, {"cap": capacity}), spec.dtype)
                if keep:
                    fresh[:, :, :keep] = self.arrays[name][:, :, :keep]
                self.arrays[name] = fresh
        except MemoryError as e:
            raise EngineError(f"no memory for a KV cache of {capacity} tokens ({e}); lower the context") from e
        self.capacity = capacity

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """See `KvCache.read`."""
        return [array[0, :, start:stop] for array in self.arrays.values()]

    def write(self, start: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `KvCache.write`."""
        if len(arrays) != len(self.arrays):
            raise EngineError(f"a KV cache of {len(self.arrays)} arrays can't take {len(arrays)}")
        for own, rows in zip(self.arrays.values(), arrays):
            if rows.shape != (own.shape[1], rows.shape[1], own.shape[3]) or start + rows.shape[1] > self.capacity:
                raise EngineError(f"rows of {list(rows.shape)} do not fit a KV cache of {list(own.shape)}")
        for own, rows in zip(self.arrays.values(), arrays):
            own[0, :, start : start + rows.shape[1]] = rows


class OvDecoder:
    """`DecoderRunner`. `static`: compiled for 1 token and for `chunk`; shorter runs are padded in front, where rows
    see nothing and nobody sees them."""

    def __init__(self, graph: OvGraph, manifest: Manifest, *, room: int, chunk: int, static: bool) -> None:
        self._graph, self._spec = graph, manifest.decoder
        self._room = min(room, manifest.decoder.max_context)
        self._chunk, self._static = chunk, static
        if "new_bias" not in graph.inputs:
            raise EngineError("this decoder writes its cache itself: export the checkpoint with --backend openvino")
        if static and any(name.startswith(STATE) for name in graph.inputs):
            raise EngineError("layers of linear attention need runs of any length, which an NPU does not have")
        self._free = None if static else graph.compiled()

    def new_cache(self, tokens: int) -> OvKvCache:
        """See `DecoderRunner.new_cache`."""
        return OvKvCache(self._graph, max(tokens, self._room), self._spec.max_context)

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        """See `DecoderRunner.run`."""
        if not isinstance(cache, OvKvCache):
            raise EngineError(f"a {type(cache).__name__} does not belong to the OpenVINO engine")
        count = int(inputs.embeds.shape[0])
        if not 1 <= inputs.last_k <= (min(count, self._chunk) if self._static else count):
            raise EngineError(f"logits of the last {inputs.last_k} of {count} tokens were asked for")
        cache.begin(past)
        cache.reserve(past + count, past)
        if not self._static:
            return self._run(self._free, inputs, (0, count), cache, past, count, budget)
        logits: F32 = np.empty((0, self._spec.vocab), np.float32)
        for start, stop in _pieces(count, self._chunk, inputs.last_k):
            rows = 1 if stop - start == 1 else self._chunk
            last_k = inputs.last_k if stop == count else 1
            model = self._graph.compiled({"s": rows, "cap": cache.capacity, "last_k": last_k})
            logits = self._run(model, inputs, (start, stop), cache, past + start, rows, budget)
        return logits

    def _run(
        self,
        model: Any,
        inputs: DecoderInputs,
        part: tuple[int, int],
        cache: OvKvCache,
        past: int,
        rows: int,
        budget: Budget,
    ) -> F32:
        """Tokens [start, stop) of the run as the last of `rows` rows."""
        (start, stop), padding = part, rows - (part[1] - part[0])
        tokens = slice(start, stop)
        feeds: dict[str, NDArray[Any]] = {
            "inputs_embeds": _padded(inputs.embeds[tokens], padding)[None],
            "rope_cos": _padded(inputs.rope_cos[tokens], padding),
            "rope_sin": _padded(inputs.rope_sin[tokens], padding),
            "attention_bias": cached_bias(past, rows, cache.capacity),
            "new_bias": new_bias(rows, padding),
        }
        if not self._static:
            feeds["last_k"] = np.array([inputs.last_k], np.int64)
        if "deepstack" in self._graph.inputs:
            shown = inputs.deepstack
            deep = np.zeros((self._spec.deepstack, rows, self._spec.hidden), np.float32)
            if shown is not None:
                deep[:, padding:] = shown[:, tokens]
            feeds["deepstack"] = deep
        request = cache.requests.get((id(model), rows == 1))
        if request is None:
            request = cache.requests[id(model), rows == 1] = model.create_infer_request()
        self._graph.run(request, {**feeds, **cache.arrays, **cache.states}, budget)
        for name, array in cache.arrays.items():
            new = output(request, NEW + name.removeprefix(PAST))
            array[:, :, past : past + stop - start] = new[:, :, padding:]
        for name, array in cache.states.items():
            array[...] = output(request, NEXT + name.removeprefix(STATE))
        cache.seen = past + stop - start
        logits: F32 = np.array(output(request, "logits")[0], np.float32)
        return logits


def _padded(rows: NDArray[Any], padding: int) -> NDArray[Any]:
    """Float32 rows with `padding` rows of zeros in front."""
    rows = np.ascontiguousarray(rows, np.float32)
    return np.concatenate([np.zeros((padding, *rows.shape[1:]), np.float32), rows]) if padding else rows


def _pieces(count: int, chunk: int, last_k: int) -> list[tuple[int, int]]:
    """[start, stop) of runs of at most `chunk` tokens; the last `last_k` stay together."""
    first = count - min(chunk, count) if last_k > 1 else math.ceil(count / chunk - 1) * chunk
    return [(at, min(at + chunk, first)) for at in range(0, first, chunk)] + [(first, count)]
