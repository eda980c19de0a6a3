"""The decoder on ONNX Runtime: graphs of all backends behind one `run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, DecoderRun, KvCache, cached_bias, causal_bias, new_bias
from gog_edge.engines.ort.cache import NEW_BIAS, OrtKvCache, cache_names, free_room
from gog_edge.engines.ort.graph import OrtGraph
from gog_edge.engines.ort.state import PRESENT, state_names
from gog_edge.engines.ort.together import MOST, Tables, in_order, stacked
from gog_edge.errors import EngineError
from gog_edge.manifest import Manifest
from gog_edge.native.contract import DOMAIN
from gog_edge.native.dispatch import gemm_rows_independent

_NEEDED = ("inputs_embeds", "rope_cos", "rope_sin", "last_k")
_READ = "prefill_rows"  # of native operators: the rows that take the arithmetic of reading
_FEW = 16  # tokens of a run whose inputs are copied to where they are bound (`OrtKvCache.bind`)
_LITTLE = 1024  # tokens; where there is no address space for more
_POSITION = (  # of graphs that count rows, that are told where to write, and that leave writing to us
    ("seqlens_k", "total_sequence_length"),
    ("write_indices", "attention_bias"),
    ("attention_bias", NEW_BIAS),
)


class OrtDecoder:
    """`DecoderRunner` over one graph. Portable: TensorScatter is told where to write, attention what it may see. Graphs
    of backend openvino read the cache only; what they add is written here. Else attention counts rows itself."""

    def __init__(self, graph: OrtGraph, manifest: Manifest, initial_context: int | None) -> None:
        import onnxruntime

        self._graph = graph
        self._run_options = onnxruntime.RunOptions
        self._host = graph.device.memory == "cpu"
        self._portable = manifest.portable
        self._appends = NEW_BIAS in graph.inputs
        self._max = manifest.decoder.max_context
        self._room = initial_context or free_room(graph)
        self._vocab = manifest.decoder.vocab
        self._takes_deepstack = "deepstack" in graph.inputs
        self._takes_total = "total_sequence_length" in graph.inputs
        self._deepstack_shape = (manifest.decoder.deepstack, manifest.decoder.hidden)
        few = _FEW if self._host else 1  # a part of it is not contiguous, which copies on the host only can take
        self._no_deepstack: F32 = np.zeros((self._deepstack_shape[0], few, self._deepstack_shape[1]), np.float32)
        self._native = DOMAIN in graph.spec.domains
        self._stateful = bool(state_names(graph))
        linear = manifest.decoder.linear
        self._kernel = 0 if linear is None else linear.kernel
        self._tables: Tables | None = None
        self._two_ways = any(name.startswith(PRESENT) for name in graph.outputs)
        positions = _POSITION[2 if self._appends else int(manifest.portable)]
        needed = {*_NEEDED, positions[0], *((_READ,) if self._native else ())}
        known = {*needed, *positions, "deepstack", *cache_names(graph), *state_names(graph)}
        odd = sorted((graph.inputs.keys() - known) | (needed - graph.inputs.keys()))
        if odd:
            raise EngineError(
                f"the decoder graph's inputs do not fit backend {manifest.backend!r} ({', '.join(odd)}); "
                "export the checkpoint again with this version"
            )

    @property
    def rows_independent(self) -> bool:
        """Native operators (see `gog_edge.native.contract`), with float matrices where ONNX Runtime's Gemm is found to
        be; its attention is not: the sums of a row follow the number of rows. Nor is its linear attention."""
        return self._native and not self._two_ways and gemm_rows_independent()

    @property
    def most_together(self) -> int:
        """See `RunsTogether`."""
        return MOST if self.rows_independent else 1

    def new_cache(self, tokens: int) -> OrtKvCache:
        """See `DecoderRunner.new_cache`."""
        room = max(tokens, min(self._room, self._max))
        try:
            return OrtKvCache(self._graph, self._max, room, self._kernel)
        except EngineError:  # address space is limited (ulimit -v, strict overcommit)
            if room <= max(tokens, _LITTLE):
                raise
            return OrtKvCache(self._graph, self._max, max(tokens, _LITTLE), self._kernel)

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        """See `DecoderRunner.run`."""
        if not isinstance(cache, OrtKvCache):
            raise _foreign(cache)
        count = int(inputs.embeds.shape[0])
        if inputs.last_k < 1 or inputs.last_k > count:
            raise EngineError(f"logits of the last {inputs.last_k} of {count} tokens were asked for")
        if self._stateful:
            cache.recurrent.begin(past, count)
        if past + count > cache.capacity:
            cache.reserve(past + count, past)
        feeds = self._feeds(inputs, past, count, cache.capacity)
        run = cache.ready.get((count, inputs.last_k, cache.recurrent.side))
        if run is None:
            run = cache.bind(count, feeds, (1, inputs.last_k, self._vocab))
        else:
            for name, array in feeds.items():
                run.inputs[name][...] = array
        budget.check()
        options = self._run_options()
        if self._host:
            options.add_run_config_entry("gpu_graph_id", "0")  # its default; the binding looks it up by exception

        def stop() -> None:
            options.terminate = True

        try:
            with budget.on_stop(stop):
                self._graph.session.run_with_iobinding(run.binding, options)
        except Exception as e:  # the binding raises many types without a common base
            raise self._graph.failed(e, budget) from e
        if self._appends:
            cache.append(run, past)
        if self._stateful:
            cache.recurrent.ran(past + count)
        logits: F32 = run.logits[0]
        return logits

    def run_together(self, runs: Sequence[DecoderRun]) -> list[F32 | None]:
        """See `RunsTogether.run_together`. Not from two threads at once."""
        order = in_order(runs)
        sorted_runs, caches = [runs[i] for i in order], list[OrtKvCache]()
        inputs, counts = stacked(sorted_runs), [len(run.inputs.embeds) for run in sorted_runs]
        for run, count in zip(sorted_runs, counts):
            if not isinstance(run.cache, OrtKvCache):
                raise _foreign(run.cache)
            if self._stateful:
                run.cache.recurrent.begin(run.past, count)
            run.cache.reserve(run.past + count, run.past)
            caches.append(run.cache)
        if self._tables is None:
            self._tables = Tables(self._graph)
        self._tables.fill(caches, counts, [run.past + count for run, count in zip(sorted_runs, counts)])
        feeds = self._feeds(inputs, 0, len(inputs.embeds), 0)
        feeds["seqlens_k"] = np.array([-len(runs)], np.int32)
        bound = self._tables.bind(len(inputs.embeds), feeds, inputs.last_k, self._vocab)
        self._graph.run(lambda options: self._graph.session.run_with_iobinding(bound.binding, options))
        found: list[F32 | None] = [None] * len(runs)
        end = inputs.last_k - len(inputs.embeds)  # of a conversation's rows, in those that have logits
        for number, run, cache, count in zip(order, sorted_runs, caches, counts):
            end += count
            if self._stateful:
                cache.recurrent.ran(run.past + count)
            if run.inputs.last_k:
                found[number] = cache.keep_logits(bound.logits[0, end - run.inputs.last_k : end])
        return found

    def _feeds(self, inputs: DecoderInputs, past: int, count: int, capacity: int) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(inputs.embeds, np.float32)[None],
            "rope_cos": np.ascontiguousarray(inputs.rope_cos, np.float32),
            "rope_sin": np.ascontiguousarray(inputs.rope_sin, np.float32),
            "last_k": np.array([inputs.last_k], np.int64),
        }
        if self._native:
            feeds[_READ] = np.array(inputs.read, np.int32)
        if self._takes_deepstack:
            none = inputs.deepstack is None and count <= self._no_deepstack.shape[1]
            feeds["deepstack"] = self._no_deepstack[:, :count] if none else self._deepstack(inputs, count)
        if self._appends:
            feeds[NEW_BIAS] = new_bias(count)
            feeds["attention_bias"] = cached_bias(past, count, capacity)
        elif self._portable:
            feeds["write_indices"] = np.array([past], np.int64)
            feeds["attention_bias"] = causal_bias(past, count, capacity)
        else:
            feeds["seqlens_k"] = np.array([past + count - 1], np.int32)
            if self._takes_total:
                feeds["total_sequence_length"] = np.array(past + count, np.int32)
        return feeds

    def _deepstack(self, inputs: DecoderInputs, count: int) -> F32:
        if inputs.deepstack is not None:
            return np.ascontiguousarray(inputs.deepstack, np.float32)
        return np.zeros((self._deepstack_shape[0], count, self._deepstack_shape[1]), np.float32)


def _foreign(cache: KvCache) -> EngineError:
    return EngineError(f"a {type(cache).__name__} does not belong to the onnxruntime engine")
