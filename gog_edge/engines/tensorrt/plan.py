"""TensorRT's Python API, both editions: finding a bundle's engine, loading plans, refitting, execution contexts."""

from __future__ import annotations

import importlib
import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gog_edge.bundle import Bundle
from gog_edge.disk.files import read_sealed, write_sealed
from gog_edge.errors import EngineError
from gog_edge.manifest import EngineSpec, GraphSpec

log = logging.getLogger("gog_edge.tensorrt")

RuntimeName = Literal["tensorrt-rtx", "tensorrt"]
GraphName = Literal["vision", "decoder"]
Shape = tuple[int, ...]

MODULES: dict[RuntimeName, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_MENDS: dict[RuntimeName, str] = {
    "tensorrt-rtx": "pip install 'gog-edge[tensorrt-rtx]' (on Linux or Windows on x86-64)",
    "tensorrt": "on a Jetson it comes with JetPack (make the environment with --system-site-packages); elsewhere "
    "pip install 'gog-edge[tensorrt]' on a machine with an NVIDIA driver",
}
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Library:
    """An imported edition of TensorRT."""

    runtime: RuntimeName
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)


def import_library(runtime: RuntimeName) -> Library:
    """Import an edition.

    Raises:
        EngineError: it is not installed, with how to install it.
    """
    try:
        return Library(runtime, importlib.import_module(MODULES[runtime]))
    except ImportError as e:
        raise EngineError(f"{runtime} is not installed ({e}): {_MENDS[runtime]}") from e


def devices(engine: EngineSpec) -> tuple[str, ...]:
    """The compute capabilities that a plan was built for: a portable one names several, as in "80+86+89"."""
    return tuple(engine.compute_capability.split("+"))


def find_engine(bundle: Bundle, graph: GraphName, runtime: RuntimeName, version: str, capability: str) -> EngineSpec:
    """The engine of a bundle for this library and device; of several the one built for the fewest devices.

    Raises:
        EngineError: there is none; the line says what there is and how to get one.
    """
    engines = [e for e in bundle.manifest.engines if e.graph == graph and e.runtime == runtime]
    fitting = [e for e in engines if e.version == version and capability in devices(e)]
    if fitting:
        return min(fitting, key=lambda e: len(devices(e)))
    have = ", ".join(f"{e.version} sm {e.compute_capability}" for e in engines) or "none"
    raise EngineError(
        f"{bundle.root} has no {runtime} {version} engine of the {graph} graph for sm {capability} (it has: {have}): "
        f"export again with --backend {runtime}"
        + (f" --sm {capability}" if runtime == "tensorrt-rtx" else " on this device")
    )


@dataclass(frozen=True)
class PlanRequest:
    """A serialized engine to be loaded.

    file: the plan. onnx: the graph it was built from (weights of stripped plans come from it). spec: the graph's
    interface. report: what the build wrote down (`capacity`, `chunk`, `verify`, `image_patches`, `weights`).
    kept: where kernels compiled for this device may be kept between runs, or None.
    """

    file: Path
    onnx: Path
    spec: GraphSpec
    report: Mapping[str, Any] = field(default_factory=dict)
    kept: Path | None = None

    @property
    def stripped(self) -> bool:
        """The plan holds no weights."""
        return self.report.get("weights") == "stripped"


@dataclass(frozen=True)
class PlanTensor:
    """An input or output of a plan. shape: -1 where the size is chosen at run time. host: its value is read on the host
    (it decides shapes). alias: the input whose memory this output must share, or None."""

    name: str
    dtype: str
    shape: Shape
    is_input: bool
    host: bool = False
    alias: str | None = None


class _Listener:
    """TensorRT's log: warnings and worse go to ours; the newest error is kept for the exception."""

    def __init__(self, trt: Any) -> None:
        self.last_error = ""
        self.logger = _make_logger(trt, self)

    def heard(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.last_error = " ".join(message.split())
            log.error("TensorRT: %s", self.last_error)
        elif severity == "WARNING":
            log.warning("TensorRT: %s", message)

    def reason(self) -> str:
        text = self.last_error or "TensorRT gives no reason"
        return text if len(text) <= 300 else text[:300] + "…"


def _make_logger(trt: Any, listener: _Listener) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            listener.heard(str(severity).rpartition(".")[2], message)

    return Logger()


class TrtPlan:
    """A loaded engine: its tensors by name, and its optimisation profiles."""

    def __init__(self, library: Library, request: PlanRequest, runtime: Any, engine: Any, listener: _Listener) -> None:
        self._trt, self._request, self._listener = library.trt, request, listener
        self._runtime, self._engine = runtime, engine  # the runtime must outlive the engine
        self._kernels: Any = None
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.tensors: Mapping[str, PlanTensor] = {name: self._tensor(name) for name in names}
        self.profiles = int(engine.num_optimization_profiles)

    @classmethod
    def load(cls, library: Library, request: PlanRequest, capability: str) -> TrtPlan:
        """Deserialize, and refit a plan without weights.

        Raises:
            EngineError: TensorRT refuses the plan, or its weights.
        """
        trt, listener = library.trt, _Listener(library.trt)
        runtime = trt.Runtime(listener.logger)
        with request.file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{library.runtime} {library.version} can't load {request.file} on sm {capability}: "
                f"{listener.reason()}; build it with this version for this device"
            )
        if request.stripped:
            _refit(library, engine, listener, request)
        return cls(library, request, runtime, engine, listener)

    def _tensor(self, name: str) -> PlanTensor:
        trt, engine = self._trt, self._engine
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        dtype = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        aliased = getattr(engine, "get_aliased_input_tensor", None)  # came with the KV cache layer
        alias = aliased(name) if aliased is not None and not is_input else None
        host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        shape = tuple(int(d) for d in engine.get_tensor_shape(name))
        return PlanTensor(name, _DTYPES.get(dtype, dtype), shape, is_input, host, alias or None)

    def limits(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """Smallest and largest shape of an input under a profile."""
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(int(d) for d in low), tuple(int(d) for d in high)

    def scratch(self, profile: int) -> int:
        """Bytes of working memory that a context of this profile needs."""
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def context(self, profile: int, stream: Any, scratch: int, nbytes: int, *, few_shapes: bool) -> TrtContext:
        """A context that works in `nbytes` of device memory at `scratch`; contexts that never run at the same time may
        share it.

        few_shapes: the same few shapes come again and again: kernels may be made for each of them at once.
        """
        trt, engine = self._trt, self._engine
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT-RTX makes kernels when it runs
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            strategy = trt.DynamicShapesKernelSpecializationStrategy
            # decoding: the right kernels before the first capture; other shapes: at once, better kernels later
            config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER if few_shapes else strategy.LAZY
            config.set_runtime_cache(self._kernel_cache(config))
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(managed)
        if context is None:
            raise EngineError(f"no execution context of {self._request.file.name}: {self._listener.reason()}")
        if not context.set_optimization_profile_async(profile, int(stream.handle)):
            raise EngineError(f"{self._request.file.name} has no profile {profile}: {self._listener.reason()}")
        context.set_device_memory(scratch, nbytes)  # after the profile, which decides how much is needed
        return TrtContext(context, self._request.file.name, self._listener)

    def _kernel_cache(self, config: Any) -> Any:
        """One for all contexts of the plan, filled from disk where an earlier process left something that fits."""
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            kept = self._request.kept
            found = _kept(kept) if kept is not None else None
            if found is not None and not self._kernels.deserialize(found):
                log.info("compiled kernels in %s do not fit this device: they are made anew", kept)
        return self._kernels

    def close(self) -> None:
        """Release it, after all its contexts. Keeps compiled kernels where `PlanRequest.kept` says."""
        kept = self._request.kept
        if self._kernels is not None and kept is not None:
            _keep(kept, bytes(memoryview(self._kernels.serialize())))
        self._kernels = self._engine = self._runtime = None


class TrtContext:
    """One execution context: shapes and addresses of one optimisation profile. Not thread-safe."""

    def __init__(self, context: Any, name: str, listener: _Listener) -> None:
        self._context, self._name, self._listener = context, name, listener

    def shape(self, name: str, shape: Shape) -> None:
        """The size of an input.

        Raises:
            EngineError: outside of the profile's range.
        """
        if not self._context.set_input_shape(name, shape):
            raise EngineError(f"{self._name} takes no {name} of shape {shape}: {self._listener.reason()}")

    def bind(self, name: str, address: int) -> None:
        """Where an input or output lies."""
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{self._name} takes no address of {name}: {self._listener.reason()}")

    def enqueue(self, stream: Any) -> None:
        """Put one run on the stream.

        Raises:
            EngineError: an input lacks its shape or address, or the run was refused.
        """
        missing = self._context.infer_shapes()
        if missing:
            raise EngineError(f"a run of {self._name} lacks the shape or address of {', '.join(missing)}")
        if not self._context.execute_async_v3(int(stream.handle)):
            raise EngineError(f"{self._name} failed: {self._listener.reason()}")

    def capturable(self, stream: Any) -> bool:
        """Whether a run may be captured into a CUDA graph now; only TensorRT-RTX can tell."""
        can = getattr(self._context, "is_stream_capturable", None)
        return bool(can(int(stream.handle))) if can is not None else True

    def close(self) -> None:
        self._context = None


def _refit(library: Library, engine: Any, listener: _Listener, request: PlanRequest) -> None:
    """Put the weights of the ONNX file into a stripped plan.

    Raises:
        EngineError: TensorRT does not take them, or some are missing.
    """
    trt = library.trt
    refitter = trt.Refitter(engine, listener.logger)
    parser = trt.OnnxParserRefitter(refitter, listener.logger)
    if not parser.refit_from_file(str(request.onnx)):
        problems = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineError(
            f"the weights of {request.onnx.name} do not fit {request.file.name} ({problems or listener.reason()}): "
            "build the engine again without --strip-weights"
        )
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        names = ", ".join(missing[:3]) or listener.reason()
        raise EngineError(
            f"{request.file.name} lacks weights after refitting ({names}): build it again without --strip-weights"
        )


def _keep(path: Path, data: bytes) -> None:
    """Write compiled kernels; a cache that can't be written costs compiling again and one line in the log."""
    try:
        write_sealed(path, data)
    except OSError as e:
        log.warning("compiled kernels are not kept in %s: %s", path.parent, e)


def _kept(path: Path) -> bytes | None:
    """Compiled kernels as they were written, or None: TensorRT is given nothing damaged, and nothing of others."""
    try:
        return read_sealed(path)
    except OSError as e:
        log.warning("compiled kernels in %s can't be read: %s", path.parent, e)
        return None
