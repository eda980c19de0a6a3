"""The decoder on TensorRT: two profiles, inputs in one copy, the KV cache in place, decoding steps as CUDA graphs.

Profile 0 takes prefill chunks, profile 1 decoding steps of a few tokens; both contexts work in the same scratch memory,
because they share a stream. A decoding step of the same size over the same cache has the same shapes and addresses:
its second occurrence is captured (copy in, run, copy out), every later one is a single launch.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, DecoderInputs, Features, KvCache, PlacedImage, causal_bias
from gog_edge.engines.tensorrt.cuda import CudaGpu
from gog_edge.engines.tensorrt.memory import (
    CapturedGraph,
    DeviceFeatures,
    Lane,
    Packed,
    TrtKvCache,
    check_tensors,
)
from gog_edge.engines.tensorrt.plan import Shape, TrtContext, TrtPlan
from gog_edge.errors import EngineError
from gog_edge.manifest import Manifest

log = logging.getLogger("gog_edge.tensorrt")

PAST, PRESENT = "past_key_values.", "present."
PREFILL, DECODE = 0, 1
_MOST_GRAPHS = 8  # captured steps of one session


class TrtDecoder:
    """`DecoderRunner` over one plan. One run at a time: sessions share the contexts and the scratch memory."""

    def __init__(self, gpu: CudaGpu, plan: TrtPlan, manifest: Manifest, *, graphs: bool) -> None:
        """Make the contexts and the input buffers.

        Raises:
            EngineError: the plan does not fit the manifest or does not write its cache in place, or there is no memory.
        """
        spec = manifest.graphs["decoder"]
        check_tensors(plan.tensors, (*spec.inputs, *spec.outputs), "decoder")
        if plan.profiles != 2:
            raise EngineError(f"the decoder engine has {plan.profiles} profiles instead of 2; build it again")
        self._plan, self._decoder = plan, manifest.decoder
        self._caches = [t for t in spec.inputs if t.name.startswith(PAST)]
        for cache in self._caches:
            present = PRESENT + cache.name.removeprefix(PAST)
            if plan.tensors[present].alias != cache.name:
                raise EngineError(f"the decoder engine does not write {cache.name} in place; build it again")
        self._inputs = {t.name: t for t in spec.inputs if not t.name.startswith(PAST)}
        self.capacity = int(plan.tensors[self._caches[0].name].shape[2])
        self.chunk = plan.limits("inputs_embeds", PREFILL)[1][1]
        self.verify = plan.limits("inputs_embeds", DECODE)[1][1]
        self.graphs = graphs
        self.replayed = self.captured = 0
        self._lane = Lane(gpu, gpu.stream())
        self._gpu, self._stream = gpu, self._lane.stream
        self._contexts: dict[int, TrtContext] = {}
        self._sessions: weakref.WeakSet[TrtKvCache] = weakref.WeakSet()
        self._owned: list[Any] = []
        try:
            self._scratch = self._own(gpu.allocate(max(plan.scratch(PREFILL), plan.scratch(DECODE), 1)))
            self._packed: Packed = self._own(Packed(gpu, Packed.places(self._tensors(self.chunk))[1]))
            deep = self._deepstack_bytes(self.chunk)
            self._deep = self._own(gpu.allocate(deep)) if deep else None
            self._deep_dirty = deep  # bytes from the start that may not be zero
            for profile in (PREFILL, DECODE):
                self._contexts[profile] = self._own(self._context(profile))
        except BaseException:
            self.close()
            raise

    @property
    def max_tokens(self) -> int:
        """Tokens that any of its caches can hold."""
        return self.capacity

    def _own(self, thing: Any) -> Any:
        self._owned.append(thing)
        return thing

    def _context(self, profile: int) -> TrtContext:
        scratch = self._scratch
        few = profile == DECODE
        return self._plan.context(profile, self._stream, scratch.address, scratch.nbytes, few_shapes=few)

    def new_cache(self, tokens: int) -> TrtKvCache:
        """See `DecoderRunner.new_cache`: always the engine's whole capacity."""
        cache = TrtKvCache(self._lane, self._caches, self.capacity, self.verify, self._decoder.vocab)
        cache.reserve(tokens, 0)
        self._sessions.add(cache)
        return cache

    def takes(self, features: Features) -> bool:
        """Whether `run` can take these features from the device (`DecoderInputs.placed`)."""
        return isinstance(features, DeviceFeatures) and features.lane.gpu is self._gpu

    def run(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget = UNLIMITED) -> F32:
        """See `DecoderRunner.run`. More tokens than the engine's longest chunk are run piece by piece.

        A run on the device is not interrupted; the budget is looked at before every piece.
        """
        if not isinstance(cache, TrtKvCache):
            raise EngineError(f"a {type(cache).__name__} does not belong to the TensorRT engine")
        count = int(inputs.embeds.shape[0])
        if not 1 <= inputs.last_k <= min(count, self.chunk):
            raise EngineError(
                f"logits of the last {inputs.last_k} of {count} tokens were asked for (at most {self.chunk})"
            )
        cache.reserve(past + count, past)
        with self._lane.use():
            for start, stop in _pieces(count, self.chunk, inputs.last_k):
                budget.check()
                last_k = inputs.last_k if stop == count else 1
                self._step(_part(inputs, start, stop), cache, past + start, last_k)
            return cache.logits.host[: inputs.last_k].copy()  # page-locked memory goes with its cache

    def close(self) -> None:
        """Free everything but the sessions' caches. Idempotent."""
        self._lane.close()
        with self._lane.lock:
            for cache in list(self._sessions):
                cache.drop_graphs()  # their contexts must not outlive the plan
            while self._owned:
                self._owned.pop().close()

    # -- one run ---------------------------------------------------------------------------------------------

    def _tensors(self, count: int) -> dict[str, tuple[Shape, str]]:
        """The packed inputs of a run of `count` tokens: all but the cache and deepstack."""
        sizes: Mapping[str, int] = {"s": count, "cap": self.capacity}
        return {
            name: (tuple(d if isinstance(d, int) else sizes[d] for d in spec.shape), spec.dtype)
            for name, spec in self._inputs.items()
            if name != "deepstack"
        }

    def _deepstack_bytes(self, count: int) -> int:
        return 4 * self._decoder.deepstack * count * self._decoder.hidden if "deepstack" in self._inputs else 0

    def _step(self, inputs: DecoderInputs, cache: TrtKvCache, past: int, last_k: int) -> None:
        """Run one piece and wait for it; its logits are in the cache's place for them."""
        count = int(inputs.embeds.shape[0])
        cache.more_logits(last_k)
        size = self._stage(inputs, past, count, last_k)
        self._clean_deepstack(inputs, count)
        key = (count, last_k)
        plain = count <= self.verify and not inputs.placed and inputs.deepstack is None
        graph = cache.graphs.get(key) if plain else None
        if graph is not None:
            self._gpu.launch(graph.graph, self._stream)
            self.replayed += 1
        elif plain and self.graphs and cache.seen.get(key, 0) >= 1:
            self._capture(cache, count, last_k, size, key)
        else:
            context = self._contexts[DECODE if count <= self.verify else PREFILL]
            self._bind(context, cache, count)
            self._enqueue(context, cache, last_k, size, inputs)
            if plain:
                cache.seen[key] = cache.seen.get(key, 0) + 1
        self._gpu.synchronize(self._stream)

    def _stage(self, inputs: DecoderInputs, past: int, count: int, last_k: int) -> int:
        """Write the packed inputs into page-locked memory; bytes to copy. The last copy out of it is done."""
        tensors = self._tensors(count)
        offsets, size = Packed.places(tensors)
        values = {
            "inputs_embeds": inputs.embeds,
            "rope_cos": inputs.rope_cos,
            "rope_sin": inputs.rope_sin,
            "last_k": last_k,
            "write_indices": past,
            "attention_bias": causal_bias(past, count, self.capacity),
        }
        for name, (shape, dtype) in tensors.items():
            self._packed.view(offsets[name], shape, dtype)[...] = np.reshape(np.asarray(values[name]), shape)
        return size

    def _clean_deepstack(self, inputs: DecoderInputs, count: int) -> None:
        """Zeros where the run has no image, and a note of what is no longer zero afterwards."""
        if self._deep is None:
            return
        used = self._deepstack_bytes(count)
        dirty = min(used, self._deep_dirty)
        if dirty:
            self._gpu.clear(self._deep.address, self._deep_dirty, self._stream)
            self._deep_dirty = 0
        if inputs.deepstack is not None or inputs.placed:
            self._deep_dirty = used

    def _bind(self, context: TrtContext, cache: TrtKvCache, count: int) -> None:
        tensors = self._tensors(count)
        offsets, _ = Packed.places(tensors)
        for name, (shape, _) in tensors.items():
            context.shape(name, shape)
            base = self._packed.host if self._plan.tensors[name].host else self._packed.device
            context.bind(name, base.address + offsets[name])
        if self._deep is not None:
            context.shape("deepstack", (self._decoder.deepstack, count, self._decoder.hidden))
            context.bind("deepstack", self._deep.address)
        for name, address in cache.addresses.items():
            context.bind(name, address)
            context.bind(PRESENT + name.removeprefix(PAST), address)
        context.bind("logits", cache.logits.address)

    def _enqueue(
        self, context: TrtContext, cache: TrtKvCache, last_k: int, size: int, inputs: DecoderInputs | None
    ) -> None:
        """Copy in, run, copy out."""
        gpu, stream = self._gpu, self._stream
        gpu.upload(self._packed.device.address, self._packed.host.array[:size], stream)
        if inputs is not None:
            self._place(inputs)
        context.enqueue(stream)
        gpu.download(cache.logits.host[:last_k], cache.logits.address, stream)

    def _place(self, inputs: DecoderInputs) -> None:
        """Image rows, over what was uploaded: from the host's deepstack, and from features on the device."""
        gpu, stream = self._gpu, self._stream
        count, row = int(inputs.embeds.shape[0]), 4 * self._decoder.hidden
        if inputs.deepstack is not None and self._deep is not None:
            gpu.upload(self._deep.address, np.ascontiguousarray(inputs.deepstack, np.float32), stream)
        embeds = self._packed.device.address + Packed.places(self._tensors(count))[0]["inputs_embeds"]
        for image in inputs.placed:
            features = image.features
            if not isinstance(features, DeviceFeatures):
                raise EngineError("placed features have to lie on the engine's device")
            gpu.wait(features.ready, stream)
            size = image.count * row
            gpu.copy(embeds + image.at * row, features.address + image.first * row, size, stream)
            if self._deep is None:
                continue
            for layer in range(features.layers):
                target = self._deep.address + (layer * count + image.at) * row
                source = features.deepstack_address + (layer * features.tokens + image.first) * row
                gpu.copy(target, source, size, stream)

    def _capture(self, cache: TrtKvCache, count: int, last_k: int, size: int, key: tuple[int, int]) -> None:
        """Run this step in a context of its own and capture the next one like it.

        TensorRT wants one context a captured graph, and one plain run of the same shapes before the capture.
        """
        gpu, stream = self._gpu, self._stream
        context = self._context(DECODE)
        kept = False
        try:
            self._bind(context, cache, count)
            self._enqueue(context, cache, last_k, size, None)
            gpu.synchronize(stream)
            if not context.capturable(stream):
                cache.seen[key] = 0  # kernels for these shapes are still being made: try again later
                return
            try:
                gpu.begin_capture(stream)
                try:
                    self._enqueue(context, cache, last_k, size, None)
                finally:
                    graph = gpu.end_capture(stream)
            except EngineError as e:
                log.warning("a decoding step can't be captured (%s): going on without CUDA graphs", e)
                self.graphs = False
                return
            cache.keep_graph(key, CapturedGraph(gpu, graph, context), _MOST_GRAPHS)
            kept = True
            self.captured += 1
        finally:
            if not kept:
                context.close()


def _pieces(count: int, chunk: int, last_k: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of runs of at most `chunk` tokens; the last `last_k` stay together."""
    start = 0
    while start < count:
        stop = min(start + chunk, count)
        if 0 < count - stop < last_k:
            stop = count - last_k
        yield start, stop
        start = stop


def _part(inputs: DecoderInputs, start: int, stop: int) -> DecoderInputs:
    if stop - start == inputs.embeds.shape[0]:
        return inputs
    rows = slice(start, stop)
    placed = []
    for image in inputs.placed:
        first, last = max(image.at, start), min(image.at + image.count, stop)
        if first < last:
            placed.append(PlacedImage(first - start, image.first + first - image.at, last - first, image.features))
    deepstack = None if inputs.deepstack is None else inputs.deepstack[:, rows]
    return DecoderInputs(
        inputs.embeds[rows], inputs.rope_cos[rows], inputs.rope_sin[rows], deepstack, inputs.last_k, tuple(placed)
    )
