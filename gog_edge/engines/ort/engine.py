"""ONNX Runtime as an engine: CPU first, CUDA and the TensorRT providers by name."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import EngineInfo, Features
from gog_edge.engines.ort.decoder import OrtDecoder
from gog_edge.engines.ort.graph import OrtGraph
from gog_edge.engines.ort.options import OrtOptions, find_device, settled
from gog_edge.engines.registry import EngineEntry
from gog_edge.errors import EngineError, UsageError


class OrtVision:
    """`VisionRunner` over one graph."""

    def __init__(self, graph: OrtGraph, shrink: bool) -> None:
        self._graph = graph
        self._shrink = shrink
        self._outputs = [name for name in ("features", "deepstack") if name in graph.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]], budget: Budget = UNLIMITED) -> Features:
        """See `VisionRunner.run`."""
        feeds = dict(inputs)
        odd = sorted(feeds.keys() ^ self._graph.inputs.keys())
        if odd:
            raise EngineError(f"the vision graph's inputs do not fit this version ({', '.join(odd)}); export again")
        results = self._graph.run(
            lambda options: self._graph.session.run(self._outputs, feeds, options), budget, shrink=self._shrink
        )
        main = np.asarray(results[0], np.float32)
        deepstack = np.asarray(results[1], np.float32) if len(results) > 1 else None
        return Features(main, deepstack)


class OrtEngine:
    """Both graphs of a bundle, loaded side by side."""

    def __init__(self, bundle: Bundle, options: OrtOptions, device: str) -> None:
        """Load. Raises as `OrtGraph`, and UsageError for an unknown device."""
        self._options = options
        self._device_name = device
        found = find_device(device)

        def load(name: str) -> OrtGraph:
            return OrtGraph(bundle, name, found, options)

        graphs = _both(lambda: load("vision"), lambda: load("decoder"))
        self._vision: OrtVision | None = OrtVision(graphs[0], options.shrink)
        self._decoder: OrtDecoder | None = OrtDecoder(graphs[1], bundle.manifest, options.initial_context)
        self._lock = threading.Lock()

    @property
    def vision(self) -> OrtVision:
        if self._vision is None:
            raise EngineError("the engine is closed")
        return self._vision

    @property
    def decoder(self) -> OrtDecoder:
        if self._decoder is None:
            raise EngineError("the engine is closed")
        return self._decoder

    def describe(self) -> EngineInfo:
        """Name, version, providers and the settings in force."""
        import onnxruntime

        device = find_device(self._device_name)
        settings = dataclasses.asdict(settled(self._options))
        return EngineInfo("onnxruntime", onnxruntime.__version__, (device.provider, *device.fallback), settings)

    def close(self) -> None:
        """Release the graphs. Idempotent."""
        with self._lock:
            self._vision = self._decoder = None


def _both(first: Callable[[], OrtGraph], second: Callable[[], OrtGraph]) -> tuple[OrtGraph, OrtGraph]:
    """Two graphs at once: creating a session releases the interpreter lock, and its cost is mostly reading."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(first)
        try:
            mine = second()
        finally:
            other.exception()  # never leave a load running behind an error
        return other.result(), mine


def create(bundle: Bundle, options: OrtOptions | None = None, *, device: str = "cpu") -> OrtEngine:
    """Registry factory.

    Raises:
        UsageError: `options` belong to another engine, or the device is unknown.
        EngineError, BundleError: a graph can't be loaded, or not on this device.
    """
    if options is not None and not isinstance(options, OrtOptions):
        raise UsageError(f"the onnxruntime engine takes OrtOptions, not {type(options).__name__}")
    if device != "cpu" and bundle.manifest.backend == "native":  # they write into a cache in the host's memory
        raise EngineError(f"{bundle.root} was exported for native, which is a CPU's: export with --backend cuda")
    return OrtEngine(bundle, options or OrtOptions(), device)


CPU = EngineEntry(create)
CUDA = EngineEntry(partial(create, device="cuda"), "gpu", gpu=True)
TENSORRT = EngineEntry(partial(create, device="tensorrt"), "gpu", gpu=True)
NV_TENSORRT_RTX = EngineEntry(partial(create, device="nv-tensorrt-rtx"), "gpu", gpu=True)
