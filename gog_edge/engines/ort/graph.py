"""One ONNX graph as an ONNX Runtime session: loaded, checked against the manifest, and interruptible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gog_edge.bundle import Bundle
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.ort import gpu, weights
from gog_edge.engines.ort.options import Device, OrtOptions, providers, session_options, settled
from gog_edge.errors import BundleError, EngineError
from gog_edge.manifest import GraphSpec, Manifest, TensorSpec

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml"})


class OrtGraph:
    """A loaded graph. Thread-safe: ONNX Runtime sessions may run concurrently."""

    def __init__(self, bundle: Bundle, name: str, device: Device, options: OrtOptions) -> None:
        """Load graph `name` ("vision" or "decoder") of the bundle.

        Raises:
            EngineError: ONNX Runtime can't load it here.
            BundleError: the graph differs from what the manifest says of it.
        """
        import onnxruntime

        self.name = name
        self.device = device
        self.device_id = options.device_id
        try:
            self.spec = bundle.manifest.graphs[name]
        except KeyError:
            raise BundleError(f"bundle {bundle.root} has no {name} graph; export it again") from None
        path = bundle.path(self.spec.file)
        if (wrong := wrong_experts(bundle.manifest, onnxruntime.__version__)) is not None:
            raise EngineError(f"{bundle.root}: {wrong}")
        so = session_options(options)
        if options.profile:
            so.enable_profiling, so.profile_file_prefix = True, f"{options.profile}-{name}"
        native = _register_operators(so, self.spec, bundle)
        self._weights = _in_huge_pages(so, path, options) if native and name == "decoder" else []
        if device.memory == "cuda":
            gpu.preload()
        try:
            self.session = onnxruntime.InferenceSession(str(path), so, providers=providers(device, options))
        except Exception as e:  # the binding raises many types without a common base
            manifest = bundle.manifest
            stock = manifest.decoder.linear is not None and not native
            mend = too_old(manifest.portable, stock, onnxruntime.__version__)
            raise EngineError(f"onnxruntime {onnxruntime.__version__} can't load {path}: {mend or _line(e)}") from e
        _check("input", self.session.get_inputs(), self.spec.inputs, name)
        _check("output", self.session.get_outputs(), self.spec.outputs, name)
        self.inputs = {t.name: t for t in self.spec.inputs}
        self.outputs = {t.name: t for t in self.spec.outputs}
        if self.session.get_providers()[0] != device.provider:
            why = (
                "; ".join(map(str, gpu.faults(device.provider))) or "ONNX Runtime does not say why: see gog-edge doctor"
            )
            raise EngineError(f"{device.provider} could not be started for {path.name}: {why}")

    def run(self, call: Callable[[Any], Any], budget: Budget = UNLIMITED, *, shrink: bool = False) -> Any:
        """`call(run_options)`, ended early when the budget ends.

        Raises:
            EngineError: the run failed.
            CancelledError, DeadlineReached: the budget ended it.
        """
        import onnxruntime

        budget.check()
        run_options = onnxruntime.RunOptions()
        if shrink and self.device.memory == "cpu":
            run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

        def stop() -> None:
            run_options.terminate = True

        try:
            with budget.on_stop(stop):
                return call(run_options)
        except Exception as e:  # see above
            raise self.failed(e, budget) from e

    def failed(self, error: Exception, budget: Budget) -> EngineError:
        """What a run's exception means.

        Raises:
            CancelledError, DeadlineReached: the budget ended it.
        """
        budget.check()
        return EngineError(f"the {self.name} graph failed: {_line(error)}")


def too_old(portable: bool, recurrent: bool, version: str) -> str:
    """What to do where ONNX Runtime is too old for a bundle's graphs; empty where it is not.

    1.23 runs those of its own operators; opset 24, which portable ones use, is complete from 1.25 on; its operators of
    linear attention know all that is asked of them from 1.30 on (1.23, 1.25, 1.29 and 1.30 were tried).
    """
    numbers = _numbers(version)
    if portable:
        return "" if numbers >= (1, 25) else "portable graphs need onnxruntime 1.25 or later"
    return "linear attention needs onnxruntime 1.30 or later" if recurrent and numbers < (1, 30) else ""


def wrong_experts(manifest: Manifest, version: str) -> str | None:
    """What to do where this ONNX Runtime would compute a bundle's experts wrong; None where it would not.

    QMoE of 1.23 is far off with 4-bit blocks of 32 and says nothing; 1.24, 1.25, 1.26 and 1.32 are right (all tried).
    """
    return (too_old_for_experts(version) or None) if manifest.backend == "ort" and manifest.decoder.experts else None


def too_old_for_experts(version: str) -> str:
    """What is said of an ONNX Runtime whose QMoE is wrong; empty of one that is right."""
    if _numbers(version) >= (1, 24):
        return ""
    return f"onnxruntime {version} computes mixtures of experts wrong: they need onnxruntime 1.24 or later"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _in_huge_pages(session_options: Any, path: Path, options: OrtOptions) -> list[Any]:
    """Hand the graph's weights over in huge pages, where that helps; the result must live as long as the session.

    Raises:
        BundleError: the weight file is damaged.
    """
    if options.weights == "map" or weights.why_mapped(path) is not None:
        return []
    import onnxruntime

    names, arrays = weights.load(path, settled(options).threads)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    for tensor, value in zip(names, values):
        session_options.add_initializer(tensor, value)  # used in place; add_external_initializers would copy it
    return values


def _register_operators(session_options: Any, spec: GraphSpec, bundle: Bundle) -> bool:
    """Native operators, for a graph that was exported with them; whether it was.

    Raises:
        EngineError: they are not available on this machine, or the graph needs operators of somebody else.
    """
    foreign = sorted(set(spec.domains) - _KNOWN_DOMAINS)
    if not foreign:
        return False
    from gog_edge.native.contract import DOMAIN
    from gog_edge.native.dispatch import register

    if foreign != [DOMAIN]:
        raise EngineError(f"{bundle.root} needs operators of {', '.join(foreign)}, which this gog-edge does not have")
    reason = register(session_options)
    if reason is not None:
        raise EngineError(f"{bundle.root} was exported with native operators: {reason}; or export with --backend ort")
    return True


def _check(what: str, nodes: Any, specs: tuple[TensorSpec, ...], graph: str) -> None:
    """The graph's own interface against the manifest's.

    Raises:
        BundleError: names, types or fixed sizes differ.
    """
    found = {n.name: n for n in nodes}
    wanted = {s.name: s for s in specs}
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())
        raise BundleError(f"the {graph} graph's {what}s differ from the manifest ({', '.join(odd[:4])}); export again")
    for name, spec in wanted.items():
        node = found[name]
        dtype = _ORT_TYPES.get(node.type, node.type)
        if dtype != spec.dtype:
            raise BundleError(f"{what} {name!r} of the {graph} graph is {dtype}, the manifest says {spec.dtype}")
        shape = list(node.shape)
        same = len(shape) == len(spec.shape) and all(
            a == b for a, b in zip(shape, spec.shape) if isinstance(a, int) and isinstance(b, int)
        )
        if what == "input":  # whose named sizes are the caller's to choose, and no others
            same = same and all(isinstance(a, int) == isinstance(b, int) for a, b in zip(shape, spec.shape))
        if not same:
            raise BundleError(f"{what} {name!r} of the {graph} graph is {shape}, the manifest says {list(spec.shape)}")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
