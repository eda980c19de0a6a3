"""TensorRT engines from portable graphs: TensorRT-RTX ahead of time without a GPU, TensorRT on the device itself.

Both editions have the same Python API under another module name, so there is one code path. Targets of TensorRT-RTX
are named by compute capability (sm 75 … 121) and one plan serves several (`tensorrt_targets`); TensorRT builds for the
GPU of the machine it runs on.

An engine has two optimisation profiles for the decoder (0: prefill chunks, 1: decoding with room for lookup
verification) and one for the vision tower. The KV cache has a fixed capacity: the engine writes it in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gog_edge.engines.tensorrt.plan import GraphName, Library, RuntimeName, import_library
from gog_edge.errors import EngineError, UsageError
from gog_edge.export.tensorrt.layers import engine_report, read_layers, read_scratch
from gog_edge.export.tensorrt.report import BuildLog, MemoryPeak, make_writer, network_report
from gog_edge.export.tensorrt.targets import plans, this_device
from gog_edge.manifest import EngineSpec, GraphSpec, Manifest, TensorSpec

Progress = Callable[[str], None]
LARGEST_IMAGE = 16384  # patches: 4.2 megapixels of Qwen3-VL, 3.2 of Qwen2.5-VL


@dataclass(frozen=True)
class BuildOptions:
    """How engines are built.

    `compute_capabilities`: for TensorRT-RTX, as in "89"; empty: all that the library offers. `capacity`: tokens of
    the KV cache. `chunk`: longest prefill chunk. `verify`: most tokens of a decoding step (1 + looked-up tokens).
    `image_patches`: the largest image in patches; None: the largest that the policy takes, at most `LARGEST_IMAGE`.
    `workspace_mb`: limit of scratch memory, None for the library's own. `strip_weights`: leave weights out of the plan
    (they are refitted from the bundle's weight files at load); needs a GPU. `level`: optimisation level 0..5.
    """

    compute_capabilities: tuple[str, ...] = ()
    capacity: int = 4096
    chunk: int = 512
    verify: int = 9
    image_patches: int | None = None
    workspace_mb: int | None = None
    strip_weights: bool = False
    level: int | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.chunk <= self.capacity and 1 <= self.verify <= self.capacity):
            raise UsageError(
                f"prefill chunks of {self.chunk} and steps of {self.verify} tokens: both must be at least 1 and fit a "
                f"KV cache of {self.capacity}"
            )


def build_engines(
    root: Path, manifest: Manifest, runtime: RuntimeName, options: BuildOptions, progress: Progress | None = None
) -> tuple[EngineSpec, ...]:
    """Engines of both graphs for every target, written to `root/engines`.

    `root` holds the graphs that `manifest` names (a bundle, or one that is being written).

    Raises:
        EngineError: the library is missing, a graph does not parse, or a build fails; the log file is named.
        UsageError: a compute capability that can't be built for, or graphs of another backend.
    """
    if not manifest.portable:
        raise UsageError(f"TensorRT needs portable graphs, this bundle was exported for {manifest.backend}")
    library = import_library(runtime)
    built = []
    for capabilities in _targets(library, manifest, options):
        name = "+".join(capabilities) or this_device()
        for graph in ("vision", "decoder"):
            if progress is not None:
                progress(f"building {graph} for sm {name}")
            built.append(build_graph(library, root, manifest, graph, capabilities, options))
    return tuple(built)


def build_graph(
    library: Library,
    root: Path,
    manifest: Manifest,
    graph: GraphName,
    capabilities: tuple[str, ...],
    options: BuildOptions,
) -> EngineSpec:
    """One plan of one graph, for devices that it may be for (none named: this machine's), into `root/engines`.

    Raises:
        EngineError: see `build_engines`.
    """
    (root / "engines").mkdir(exist_ok=True)
    name = "+".join(capabilities) or this_device()
    return _Build(library, root, manifest, graph, capabilities, name, options).run()


def _targets(library: Library, manifest: Manifest, options: BuildOptions) -> tuple[tuple[str, ...], ...]:
    """The devices of every plan; a stripped plan of TensorRT-RTX is for the GPU that is here."""
    wanted = options.compute_capabilities
    four_bits = any(s.get("bits") == 4 for s in manifest.quantization.values() if isinstance(s, dict))
    if not options.strip_weights or library.runtime == "tensorrt":
        return plans(library, wanted, four_bits=four_bits)
    try:
        here = this_device()
    except EngineError as e:
        raise UsageError(f"--strip-weights: TensorRT-RTX builds plans without weights only where a GPU is: {e}") from e
    if any(w != here for w in wanted):
        raise UsageError(f"--strip-weights: only for the GPU of this machine, sm {here}: leave --sm out")
    return plans(library, (here,), four_bits=four_bits)


def image_range(manifest: Manifest, largest: int | None = None) -> tuple[int, int, int]:
    """Smallest, usual and largest image of the vision profile, in patches.

    Raises:
        UsageError: `largest` is smaller than one image token.
    """
    pre = manifest.preprocessing
    token, most = pre.merge_size**2, pre.max_pixels // pre.patch_size**2
    high = min(largest or LARGEST_IMAGE, most) // token * token
    if high < token:
        raise UsageError(f"images of at most {largest} patches hold no image token: give at least {token}")
    return token, min(3072, high), high


class _Build:
    """One plan being made."""

    def __init__(
        self,
        library: Library,
        root: Path,
        manifest: Manifest,
        graph: GraphName,
        capabilities: tuple[str, ...],
        name: str,
        options: BuildOptions,
    ) -> None:
        self._library, self._trt, self._root = library, library.trt, root
        self._manifest, self._graph, self._spec = manifest, graph, manifest.graphs[graph]
        self._capabilities, self._name, self._options = capabilities, name, options
        self._images = image_range(manifest, options.image_patches)
        self._stem = f"engines/{graph}-{library.runtime}-{library.version}-sm{name}"

    def run(self) -> EngineSpec:
        """Write plan and log; what became of the graph is in the report."""
        trt, spec, options, log_file = self._trt, self._spec, self._options, self._root / f"{self._stem}.log"
        start = time.monotonic()
        # a name may be a hard link into an older bundle: a new file, never new content of the old one
        log_file.unlink(missing_ok=True)
        with BuildLog(trt, log_file) as log, MemoryPeak() as memory:
            builder = trt.Builder(log.logger)
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            with _fixed(self._root / spec.file, {"cap": options.capacity}) as file:
                parser = _parse(trt, network, log, file)
            config = self._config(builder)
            profiles = _profiles(self._manifest, self._graph, options, self._images)
            for symbols in profiles:
                if config.add_optimization_profile(_profile(builder, network, spec, symbols)) < 0:
                    raise EngineError(f"TensorRT takes no profile of sizes {symbols} (log: {log.path.name})")
            report = network_report(trt, network, self._manifest, self._graph)
            size = _serialize(trt, builder, network, config, self._root / f"{self._stem}.engine", log)
            del parser  # the network's weights lie in files that it mapped
        caches = 2 * self._manifest.decoder.layers if self._graph == "decoder" else 0
        layers = read_layers(log_file)
        if layers:
            report |= {"seen": "engine", **engine_report(layers, report["attention_layers"], caches, len(profiles))}
        report |= {
            "scratch_bytes": read_scratch(log_file),
            "build_seconds": round(time.monotonic() - start, 1),
            "peak_rss_bytes": memory.peak,
            "peak_private_bytes": memory.private,
            "plan_bytes": size,
            "capacity": options.capacity,
            "chunk": options.chunk,
            "verify": options.verify,
            "image_patches": list(self._images),
            "weights": "stripped" if options.strip_weights else "in the plan",
            "log": f"{self._stem}.log",
        }
        library = self._library
        return EngineSpec(self._graph, f"{self._stem}.engine", library.runtime, library.version, self._name, report)

    def _config(self, builder: Any) -> Any:
        trt, options = self._trt, self._options
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self._capabilities:
            config.num_compute_capabilities = len(self._capabilities)
            for i, capability in enumerate(self._capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), i)
        if options.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        if options.level is not None:
            config.builder_optimization_level = options.level
        if options.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # what a captured CUDA graph needs
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return config


def _parse(trt: Any, network: Any, log: BuildLog, file: Path) -> Any:
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(file)):
        problems = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineError(f"TensorRT {trt.__version__} can't parse {file.name}: {problems} (log: {log.path.name})")
    return parser


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


def _profiles(
    manifest: Manifest, graph: GraphName, o: BuildOptions, images: tuple[int, int, int]
) -> list[dict[str, tuple[int, int, int]]]:
    """Smallest, usual and largest size of every symbolic dimension, one table per profile."""
    if graph == "decoder":
        one = (1, 1, 1)
        return [
            {"s": (1, max(1, o.chunk // 2), o.chunk), "last_k": one},
            {"s": (1, 1, o.verify), "last_k": one},
        ]
    low, usual, high = images
    window = manifest.vision.window**2 * manifest.preprocessing.merge_size**2
    table: dict[str, tuple[int, int, int]] = {"n": (low, usual, high)}
    if window:
        # border windows may hold as little as one merged token, but a strip of one row has no more than one in `side`
        per_token, side = manifest.preprocessing.merge_size**2, manifest.vision.window
        table["W"] = (1, max(1, usual // window), -(-(high // per_token) // side))
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


def _serialize(trt: Any, builder: Any, network: Any, config: Any, file: Path, log: BuildLog) -> int:
    """Build, and write the plan piece by piece where the library can: that saves one copy of it in memory.

    Raises:
        EngineError: the build failed, or the file can't be written.
    """
    file.unlink(missing_ok=True)  # see the log
    try:
        with file.open("wb") as f:
            if hasattr(builder, "build_serialized_network_to_stream"):
                writer = make_writer(trt, f)
                done = builder.build_serialized_network_to_stream(network, config, writer)
                if writer.problem is not None:
                    raise writer.problem
            else:
                plan = builder.build_serialized_network(network, config)
                done = plan is not None
                if done:
                    f.write(memoryview(plan))
    except OSError as e:
        raise EngineError(f"{file.name} can't be written: {e}") from e
    if not done:
        raise EngineError(f"building {file.name} failed: {log.first_error or 'see the log'} (log: {log.path.name})")
    return file.stat().st_size
