"""TensorRT engines from the `standard` graphs: TensorRT-RTX ahead of time without a GPU, TensorRT on the device itself.

Both flavours have the same Python API under another module name, so there is one code path. Targets of TensorRT-RTX
are named by compute capability (sm 75 … 121); TensorRT builds for the GPU of the machine it runs on.

An engine has two optimisation profiles for the decoder (0: prefill chunks, 1: decoding with room for lookup
verification) and one for the vision tower. The KV cache has a fixed capacity: the engine writes it in place.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gog_edge.errors import EngineError, UsageError
from gog_edge.export.tensorrt_report import BuildLog, network_report
from gog_edge.manifest import EngineSpec, GraphSpec, Manifest, TensorSpec

RuntimeName = Literal["tensorrt-rtx", "tensorrt"]
GraphName = Literal["vision", "decoder"]
Progress = Callable[[str], None]

_MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_MENDS = {
    "tensorrt-rtx": "pip install 'gog-edge[tensorrt-rtx]'",
    "tensorrt": "on a Jetson it comes with JetPack (make the environment with --system-site-packages); "
    "elsewhere pip install 'gog-edge[tensorrt]' on a machine with an NVIDIA driver",
}


FIRST_WITH_INT4 = 80  # TensorRT-RTX 1.7 refuses int4 for sm 75: "the model contains HW-specific datatypes"


@dataclass(frozen=True)
class BuildOptions:
    """How engines are built.

    `compute_capabilities`: for TensorRT-RTX, as in "89"; empty: all that the library offers. `capacity`: tokens of
    the KV cache. `chunk`: longest prefill chunk. `verify`: most tokens of a decoding step (1 + looked-up tokens).
    `image_patches`: smallest, usual and largest image in patches. `workspace_mb`: limit of scratch memory, None for
    the library's own. `strip_weights`: leave weights out of the plan (they are refitted from the bundle's weight
    files at load): smaller plans, and building needs less memory. `level`: optimisation level 0..5.
    """

    compute_capabilities: tuple[str, ...] = ()
    capacity: int = 4096
    chunk: int = 512
    verify: int = 9
    image_patches: tuple[int, int, int] = (64, 3072, 16384)
    workspace_mb: int | None = None
    strip_weights: bool = False
    level: int | None = None


@dataclass(frozen=True)
class Library:
    """An imported TensorRT flavour."""

    runtime: RuntimeName
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def targets(self) -> list[str]:
        """Compute capabilities that it can build for ahead of time; empty: only for the GPU that is here."""
        names = getattr(getattr(self.trt, "ComputeCapability", None), "__members__", {})
        return sorted((n[2:] for n in names if n.startswith("SM")), key=int)


def load_library(runtime: RuntimeName) -> Library:
    """Import a flavour.

    Raises:
        EngineError: it is not installed, with how to install it.
    """
    try:
        return Library(runtime, importlib.import_module(_MODULES[runtime]))
    except ImportError as e:
        raise EngineError(f"{runtime} is not installed ({e}): {_MENDS[runtime]}") from e


def check_targets(library: Library, wanted: Sequence[str], *, four_bits: bool = False) -> tuple[str, ...]:
    """The compute capabilities to build for; `four_bits`: the graphs hold 4-bit weights, which Turing lacks.

    Raises:
        UsageError: one that the library can't build for.
    """
    offered = library.targets()
    if four_bits and offered:
        small = [w for w in wanted if w in offered and int(w) < FIRST_WITH_INT4]
        if small:
            raise UsageError(f"sm {small[0]} has no 4-bit weights: export with --precision int8 or fp16 for it")
        offered = [o for o in offered if int(o) >= FIRST_WITH_INT4]
    if not offered:
        if wanted:
            raise UsageError(f"{library.runtime} builds for the GPU of this machine only: leave --sm out")
        return ("current",)
    unknown = [w for w in wanted if w not in offered]
    if unknown:
        hint = " (Jetson: build on the device with --target tensorrt)" if unknown[0] in ("87", "101", "110") else ""
        raise UsageError(f"{library.runtime} {library.version} has no sm {unknown[0]}: one of {offered}{hint}")
    return tuple(wanted) or tuple(offered)


def build_engines(
    root: Path, manifest: Manifest, runtime: RuntimeName, options: BuildOptions, progress: Progress | None = None
) -> tuple[EngineSpec, ...]:
    """Engines of both graphs for every target, written to `root/engines`.

    `root` holds the graphs that `manifest` names (a bundle, or one that is being written).

    Raises:
        EngineError: the library is missing, a graph does not parse, or a build fails; the log file is named.
        UsageError: a compute capability that can't be built for, or graphs of another flavour.
    """
    if manifest.flavour != "standard":
        raise UsageError(f"TensorRT needs graphs of the standard flavour, this bundle has {manifest.flavour}")
    library = load_library(runtime)
    (root / "engines").mkdir(exist_ok=True)
    built = []
    four_bits = any(s.get("bits") == 4 for s in manifest.quantization.values() if isinstance(s, dict))
    for capability in check_targets(library, options.compute_capabilities, four_bits=four_bits):
        for graph in ("vision", "decoder"):
            if progress is not None:
                progress(f"building {graph} for sm {capability}")
            built.append(_build(library, root, manifest, graph, capability, options))
    return tuple(built)


def _build(
    library: Library, root: Path, manifest: Manifest, graph: Any, capability: str, options: BuildOptions
) -> EngineSpec:
    trt, spec = library.trt, manifest.graphs[graph]
    stem = f"engines/{graph}-{library.runtime}-{library.version}-sm{capability}"
    start = time.monotonic()
    (root / f"{stem}.log").unlink(missing_ok=True)
    with BuildLog(trt, root / f"{stem}.log") as log:
        builder = trt.Builder(log.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        with _fixed(root / spec.file, {"cap": options.capacity}) as file:
            _parse(trt, network, log, file)
        config = _config(trt, builder, capability, options)
        for symbols in _profiles(manifest, graph, options):
            config.add_optimization_profile(_profile(builder, network, spec, symbols))
        report = network_report(trt, network, manifest, graph)
        size = _serialize(builder, network, config, root / f"{stem}.engine", log)
    report |= {
        "build_seconds": round(time.monotonic() - start, 1),
        "plan_bytes": size,
        "capacity": options.capacity,
        "chunk": options.chunk,
        "verify": options.verify,
        "image_patches": list(options.image_patches),
        "weights": "stripped" if options.strip_weights else "in the plan",
        "log": f"{stem}.log",
    }
    return EngineSpec(graph, f"{stem}.engine", library.runtime, library.version, capability, report)


def _parse(trt: Any, network: Any, log: BuildLog, file: Path) -> None:
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(file)):
        problems = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineError(f"TensorRT {trt.__version__} can't parse {file.name}: {problems} (log: {log.path.name})")


@contextmanager
def _fixed(file: Path, sizes: Mapping[str, int]) -> Iterator[Path]:
    """The graph with sizes for some symbolic dimensions, beside the original (its weights are external and relative).

    TensorRT's KV update layer wants a static sequence dimension at parse time.
    """
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    fixed = file.with_name(f".{file.name}.fixed")
    try:
        fixed.write_bytes(model.SerializeToString())
        yield fixed
    finally:
        fixed.unlink(missing_ok=True)


def _config(trt: Any, builder: Any, capability: str, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if capability != "current":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), 0)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    return config


def _profiles(manifest: Manifest, graph: GraphName, o: BuildOptions) -> list[dict[str, tuple[int, int, int]]]:
    """Smallest, usual and largest size of every symbolic dimension, one table a profile."""
    if graph == "decoder":
        one = (1, 1, 1)
        return [
            {"s": (1, max(1, o.chunk // 2), o.chunk), "last_k": one},
            {"s": (1, 1, o.verify), "last_k": one},
        ]
    low, usual, high = o.image_patches
    window = manifest.vision.window**2 * manifest.preprocessing.merge_size**2
    table: dict[str, tuple[int, int, int]] = {"n": (low, usual, high)}
    if window:
        # a border window may hold as little as one merged token
        per_token = manifest.preprocessing.merge_size**2
        table["W"] = (1, max(1, usual // window), high // per_token)
        table["L"] = (per_token, window, window)
    return [table]


def _profile(builder: Any, network: Any, spec: GraphSpec, symbols: Mapping[str, tuple[int, int, int]]) -> Any:
    profile = builder.create_optimization_profile()
    by_name: dict[str, TensorSpec] = {t.name: t for t in spec.inputs}
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 not in tuple(tensor.shape):
            if tensor.is_shape_tensor:
                _shape_values(profile, tensor, symbols)
            continue
        shapes = []
        for rank in range(3):
            sizes = []
            for dim, fixed in zip(by_name[tensor.name].shape, tuple(tensor.shape)):
                if fixed != -1:
                    sizes.append(fixed)
                elif isinstance(dim, str) and dim in symbols:
                    sizes.append(symbols[dim][rank])
                else:
                    raise EngineError(f"no size range is known for dimension {dim!r} of input {tensor.name}")
            shapes.append(tuple(sizes))
        profile.set_shape(tensor.name, *shapes)
    return profile


def _shape_values(profile: Any, tensor: Any, symbols: Mapping[str, tuple[int, int, int]]) -> None:
    """Inputs whose values decide shapes (last_k) need value ranges instead of shapes."""
    count = 1
    for dim in tuple(tensor.shape):
        count *= dim
    low, usual, high = symbols[tensor.name]
    profile.set_shape_input(tensor.name, [low] * count, [usual] * count, [max(high, symbols["s"][2])] * count)


def _serialize(builder: Any, network: Any, config: Any, file: Path, log: BuildLog) -> int:
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"building {file.name} failed: {log.last_error or 'see the log'} (log: {log.path.name})")
    # the name may be a hard link into an older bundle: a new file, never new content of the old one
    file.unlink(missing_ok=True)
    with file.open("wb") as f:
        f.write(memoryview(plan))
    return file.stat().st_size
