"""TensorRT as an engine, both editions: `tensorrt-rtx` on desktops, `tensorrt` on Jetson and servers.

The two graphs run on two streams of one device: the vision tower's (crop kernel, tower) and the decoder's, which waits
for an event before it reads an image's features. Features, KV cache and deepstack never leave the device on that way;
down come logits, up go token embeddings and masks.
"""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gog_edge.bundle import Bundle
from gog_edge.disk.paths import cache_directory
from gog_edge.engines.base import EngineInfo
from gog_edge.engines.registry import EngineEntry
from gog_edge.engines.tensorrt.cuda import CudaGpu, open_gpu
from gog_edge.engines.tensorrt.decoder import TrtDecoder
from gog_edge.engines.tensorrt.plan import PlanRequest, RuntimeName, TrtPlan, find_engine, import_library
from gog_edge.engines.tensorrt.vision import TrtVision
from gog_edge.errors import EngineError, UsageError
from gog_edge.manifest import EngineSpec


@dataclass(frozen=True)
class TrtOptions:
    """How engines are run.

    Args:
        device_id: which GPU.
        graphs: replay decoding steps as CUDA graphs.
        device_crop: cut crops with the CUDA kernel; False cuts them on the host.
        keep_kernels: keep what TensorRT-RTX compiles for this device in the user's cache directory.
    """

    device_id: int = 0
    graphs: bool = True
    device_crop: bool = True
    keep_kernels: bool = True

    def __post_init__(self) -> None:
        if self.device_id < 0:
            raise UsageError(f"device_id is {self.device_id}: 0 or more is needed")


class TrtEngine:
    """Both plans of a bundle, loaded on one device."""

    def __init__(
        self, bundle: Bundle, options: TrtOptions, gpu: CudaGpu, vision: EngineSpec, decoder: EngineSpec
    ) -> None:
        """Load both plans.

        Raises:
            EngineError: a plan can't be loaded, does not fit the manifest, or there is no memory.
        """
        self._options, self._gpu, self._specs = options, gpu, (vision, decoder)
        self._lock = threading.Lock()
        self._vision: TrtVision | None = None
        self._decoder: TrtDecoder | None = None
        self._plans: list[TrtPlan] = []
        kept = cache_directory() / "tensorrt" if options.keep_kernels else None
        try:
            plans = [self._load(bundle, spec, kept) for spec in (vision, decoder)]
            self._vision = TrtVision(gpu, plans[0], bundle.manifest, device_crop=options.device_crop)
            self._decoder = TrtDecoder(gpu, plans[1], bundle.manifest, graphs=options.graphs)
        except BaseException:
            self.close()
            raise

    def _load(self, bundle: Bundle, spec: EngineSpec, kept: Path | None) -> TrtPlan:
        graph = bundle.manifest.graphs[spec.graph]
        name = f"{spec.graph}-{bundle.fingerprint[:16]}-sm{self._gpu.capability}.kernels"
        plan = self._gpu.load(
            PlanRequest(
                bundle.path(spec.file), bundle.path(graph.file), graph, spec.report, kept / name if kept else None
            )
        )
        self._plans.append(plan)
        return plan

    @property
    def vision(self) -> TrtVision:
        if self._vision is None:
            raise EngineError("the engine is closed")
        return self._vision

    @property
    def decoder(self) -> TrtDecoder:
        if self._decoder is None:
            raise EngineError("the engine is closed")
        return self._decoder

    def describe(self) -> EngineInfo:
        """Name, version, device and the settings in force."""
        decoder = self.decoder
        settings = {
            **dataclasses.asdict(self._options),
            "sm": self._gpu.capability,
            "capacity": decoder.capacity,
            "chunk": decoder.chunk,
            "verify": decoder.verify,
            "graphs": decoder.graphs,
            "graphs_captured": decoder.captured,
            "graphs_replayed": decoder.replayed,
            "crops": self.vision.crop_note,
            "engines": [spec.file for spec in self._specs],
        }
        name, _, version = self._gpu.library.partition(" ")
        return EngineInfo(name, version, (self._gpu.name,), settings)

    def close(self) -> None:
        """Release the plans and all memory except that of live sessions. Idempotent."""
        with self._lock:
            for runner in (self._decoder, self._vision):
                if runner is not None:
                    runner.close()
            self._decoder = self._vision = None
            while self._plans:
                self._plans.pop().close()


def create(bundle: Bundle, options: TrtOptions | None = None, *, runtime: RuntimeName = "tensorrt-rtx") -> TrtEngine:
    """Registry factory.

    Raises:
        UsageError: `options` belong to another engine.
        EngineError: TensorRT or the driver is missing, the bundle has no engine for this version and device, or its
            engine can't be loaded.
    """
    if options is not None and not isinstance(options, TrtOptions):
        raise UsageError(f"the {runtime} engine takes TrtOptions, not {type(options).__name__}")
    options = options or TrtOptions()
    if not bundle.manifest.portable:
        raise EngineError(
            f"{bundle.root} was exported for {bundle.manifest.backend}: export the checkpoint with --backend {runtime}"
        )
    library = import_library(runtime)
    gpu = open_gpu(library, options.device_id)
    vision, decoder = (
        find_engine(bundle, graph, runtime, library.version, gpu.capability) for graph in ("vision", "decoder")
    )
    return TrtEngine(bundle, options, gpu, vision, decoder)


TENSORRT = EngineEntry(partial(create, runtime="tensorrt"), "tensorrt", gpu=True)
TENSORRT_RTX = EngineEntry(partial(create, runtime="tensorrt-rtx"), "tensorrt-rtx", gpu=True)
