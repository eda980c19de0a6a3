"""The engines `openvino`, `openvino-gpu` and `openvino-npu`: bundles of backend openvino on Intel's CPUs, GPUs, NPUs.

Its CPU plugin is tested; a GPU or an NPU was not at hand. What is different there, fixed sizes, is tested on the CPU.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import EngineInfo, Features
from gog_edge.engines.openvino.decoder import OvDecoder
from gog_edge.engines.openvino.graph import OvGraph, open_device, output
from gog_edge.engines.openvino.options import OpenVinoOptions
from gog_edge.engines.registry import EngineEntry
from gog_edge.errors import EngineError, UsageError


class OvVision:
    """`VisionRunner`. `static`: compiled for the size of every image; the latest few stay."""

    def __init__(self, graph: OvGraph, static: bool) -> None:
        self._graph, self._static = graph, static
        self._names = [name for name in ("features", "deepstack") if name in graph.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]], budget: Budget = UNLIMITED) -> Features:
        """See `VisionRunner.run`."""
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        odd = sorted(feeds.keys() ^ self._graph.inputs.keys())
        if odd:
            raise EngineError(f"the vision graph's inputs do not fit this version ({', '.join(odd)}); export again")
        sizes: dict[str, int] = {}
        for name, spec in self._graph.inputs.items():
            sizes |= {d: int(n) for d, n in zip(spec.shape, feeds[name].shape) if isinstance(d, str)}
        request = self._graph.compiled(sizes if self._static else None).create_infer_request()
        self._graph.run(request, feeds, budget)
        main, *deep = (np.array(output(request, name), np.float32) for name in self._names)
        return Features(main, deep[0] if deep else None)


class OvEngine:
    """Both graphs of a bundle, loaded."""

    def __init__(self, bundle: Bundle, options: OpenVinoOptions, device: str) -> None:
        core = open_device(device)
        self._options, self._device = options, device
        static = device == "NPU" if options.static is None else options.static
        graphs = [OvGraph(core, bundle, name, device, options) for name in ("vision", "decoder")]
        self._full_name = str(core.get_property(device, "FULL_DEVICE_NAME"))
        self._vision: OvVision | None = OvVision(graphs[0], static)
        self._decoder: OvDecoder | None = OvDecoder(
            graphs[1], bundle.manifest, room=options.initial_context, chunk=options.chunk, static=static
        )
        self._lock = threading.Lock()

    @property
    def vision(self) -> OvVision:
        if self._vision is None:
            raise EngineError("the engine is closed")
        return self._vision

    @property
    def decoder(self) -> OvDecoder:
        if self._decoder is None:
            raise EngineError("the engine is closed")
        return self._decoder

    def describe(self) -> EngineInfo:
        """Name, version, device and the settings in force."""
        import openvino

        version = str(openvino.__version__).split("-")[0]
        settings = dataclasses.asdict(self._options)
        return EngineInfo("openvino", version, (f"{self._device}: {self._full_name}",), settings)

    def close(self) -> None:
        """Release the graphs. Idempotent."""
        with self._lock:
            self._vision = self._decoder = None


def create(bundle: Bundle, options: OpenVinoOptions | None = None, *, device: str = "CPU") -> OvEngine:
    """Registry factory.

    Raises:
        UsageError: `options` belong to another engine.
        EngineError, BundleError: the bundle is of another backend, the device is missing, or a graph can't be loaded.
        ImportError: OpenVINO is not installed.
    """
    if options is not None and not isinstance(options, OpenVinoOptions):
        raise UsageError(f"the openvino engine takes OpenVinoOptions, not {type(options).__name__}")
    if bundle.manifest.backend != "openvino":
        raise EngineError(
            f"{bundle.root} was exported for {bundle.manifest.backend}: export the checkpoint with --backend openvino"
        )
    return OvEngine(bundle, options or OpenVinoOptions(), device)


CPU = EngineEntry(create, "openvino")
GPU = EngineEntry(partial(create, device="GPU"), "openvino", gpu=True)
NPU = EngineEntry(partial(create, device="NPU"), "openvino", gpu=True)
