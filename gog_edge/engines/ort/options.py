"""Settings of ONNX Runtime as frozen data: which provider a device means, threads, spinning, arenas."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gog_edge.allowance import cpus, usable_threads
from gog_edge.engines.ort import gpu
from gog_edge.errors import EngineError, UsageError

Optimize = Literal["all", "extended", "basic", "none"]
Weights = Literal["auto", "map"]


@dataclass(frozen=True)
class Device:
    """One execution provider. `memory`: where its tensors live. `options`: provider options set by default."""

    provider: str
    memory: Literal["cpu", "cuda"]
    options: dict[str, str] = field(default_factory=dict)
    fallback: tuple[str, ...] = ()  # fallback providers, for nodes it does not take


CPU_PROVIDER = "CPUExecutionProvider"

DEVICES: dict[str, Device] = {
    "cpu": Device(CPU_PROVIDER, "cpu"),
    "cuda": Device(
        "CUDAExecutionProvider",
        "cuda",
        {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_use_max_workspace": "0"},
        (CPU_PROVIDER,),
    ),
    "tensorrt": Device(
        "TensorrtExecutionProvider",
        "cuda",
        {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        ("CUDAExecutionProvider", CPU_PROVIDER),
    ),
    "nv-tensorrt-rtx": Device("NvTensorRTRTXExecutionProvider", "cuda", {}, ("CUDAExecutionProvider", CPU_PROVIDER)),
}


@dataclass(frozen=True)
class OrtOptions:
    """How graphs are run.

    Args:
        threads: worker threads of one operator; 0 means as many as this process may use (`gog_edge.allowance`).
        spin: workers wait busily between operators: lower latency, one CPU each while a graph runs. None: where every
            thread has a CPU of its own and no quota of CPU time is spent by it.
        arena: pool memory between runs: faster, but the peak of one run stays allocated.
        shrink: give the arena's unused memory back after each vision run (costs a few milliseconds).
        optimize: ONNX Runtime's graph optimisation at load.
        weights: of a native decoder: "auto" reads them into huge pages where huge pages and memory are available
            (decoding is up to a quarter faster, loading takes about half a second a gigabyte), "map" loads lazily and
            shares them between processes.
        initial_context: tokens that a new KV cache has room for; it doubles when it is full. None: 65,536 with native
            operators on Linux, where room costs nothing until it is used; 4,096 or 1,024 elsewhere.
        device_id: which GPU.
        provider_options: further options of the provider, as it spells them.
        deterministic: ask for kernels whose results do not depend on scheduling.
        profile: path; each graph writes ONNX Runtime's profile to PATH-GRAPH_TIME.json when the engine is closed.
    """

    threads: int = 0
    spin: bool | None = None
    arena: bool = True
    shrink: bool = True
    optimize: Optimize = "all"
    weights: Weights = "auto"
    initial_context: int | None = None
    device_id: int = 0
    provider_options: dict[str, str] = field(default_factory=dict)
    deterministic: bool = False
    profile: str = ""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}: 0 (all that it may use) or a positive number is needed")
        if self.weights not in ("auto", "map"):
            raise UsageError(f"weights is {self.weights!r}: auto or map is needed")
        if self.initial_context is not None and self.initial_context < 1:
            raise UsageError(f"initial_context is {self.initial_context}: at least 1 token is needed")


def find_device(name: str) -> Device:
    """The entry of a device.

    Raises:
        UsageError: unknown name.
        EngineError: this onnxruntime has no such provider.
    """
    import onnxruntime

    device = DEVICES.get(name)
    if device is None:
        near = difflib.get_close_matches(name, DEVICES, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f": one of {', '.join(DEVICES)}"
        raise UsageError(f"there is no device {name!r}{hint}")
    if device.provider not in onnxruntime.get_available_providers():
        raise EngineError(str(gpu.absent(device.provider)))
    return device


def settled(options: OrtOptions) -> OrtOptions:
    """`options` with threads and spinning as this process may have them."""
    threads = options.threads or usable_threads()
    return replace(options, threads=threads, spin=cpus().may_spin(threads) if options.spin is None else options.spin)


def session_options(options: OrtOptions) -> Any:
    """`onnxruntime.SessionOptions` for `options`."""
    import onnxruntime

    options = settled(options)
    level = onnxruntime.GraphOptimizationLevel
    so = onnxruntime.SessionOptions()
    so.intra_op_num_threads = options.threads
    so.inter_op_num_threads = 1
    so.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    so.enable_cpu_mem_arena = options.arena
    so.enable_mem_pattern = False  # shapes change with every image and chunk: a pattern would be thrown away
    so.use_deterministic_compute = options.deterministic
    so.log_severity_level = 3
    so.graph_optimization_level = {
        "all": level.ORT_ENABLE_ALL,
        "extended": level.ORT_ENABLE_EXTENDED,
        "basic": level.ORT_ENABLE_BASIC,
        "none": level.ORT_DISABLE_ALL,
    }[options.optimize]
    so.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return so


def providers(device: Device, options: OrtOptions) -> list[Any]:
    """The `providers` argument of a session."""
    settings = {**device.options, **options.provider_options}
    if device.memory == "cuda":
        settings["device_id"] = str(options.device_id)
    return [(device.provider, settings), *device.fallback]
