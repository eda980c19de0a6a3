"""One graph in OpenVINO: read, fixed in its sizes where that is asked for, compiled once for each."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.bundle import Bundle
from gog_edge.deadline import Budget
from gog_edge.disk.paths import cache_directory
from gog_edge.engines.openvino.options import OpenVinoOptions
from gog_edge.errors import BundleError, EngineError
from gog_edge.manifest import TensorSpec

_MOST = 8  # compiled models of one graph: two for each capacity of the cache


def open_device(name: str) -> Any:
    """OpenVINO's core, once it is known to have the device.

    Raises:
        EngineError: it has no such device.
        ImportError: OpenVINO is not installed.
    """
    with _without_telemetry():
        import openvino

    core = openvino.Core()
    have = core.available_devices
    if not any(device.split(".")[0] == name for device in have):
        raise EngineError(
            f"OpenVINO {openvino.__version__.split('-')[0]} finds no {name} here (it has {', '.join(have) or 'none'}); "
            "its driver is Intel's and not OpenVINO's (docs/devices.md)"
        )
    return core


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """`import openvino` tells Google Analytics that it was imported, through a package that it does without where it is
    missing: so it is missing, if this process has not asked for it already. Nothing leaves the device unasked."""
    if "openvino_telemetry" in sys.modules:
        yield
        return
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # import raises ImportError
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]


class OvGraph:
    """Graph `name` of a bundle on one device. Thread-safe; requests are not."""

    def __init__(self, core: Any, bundle: Bundle, name: str, device: str, options: OpenVinoOptions) -> None:
        """Raises EngineError where OpenVINO can't read the graph, BundleError where the manifest knows another."""
        self.name, self._core, self._device = name, core, device
        spec = bundle.manifest.graphs[name]
        self.inputs = {t.name: t for t in spec.inputs}
        self.outputs = {t.name: t for t in spec.outputs}
        self._path = bundle.path(spec.file)
        self._config = _config(bundle, device, options)
        self._compiled: OrderedDict[tuple[tuple[str, int], ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        found = {n for port in self._read().inputs for n in port.names}
        if not self.inputs.keys() <= found:
            odd = ", ".join(sorted(self.inputs.keys() - found))
            raise BundleError(f"the {name} graph's inputs differ from the manifest ({odd}); export again")

    def compiled(self, sizes: Mapping[str, int] | None = None) -> Any:
        """The model; `sizes`: of named dimensions, and of `last_k`, which becomes a constant. None: all are free.

        Raises:
            EngineError: OpenVINO can't compile it for this device.
        """
        key = tuple(sorted((sizes or {}).items()))
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
            model = self._read()
            try:
                if sizes is not None:
                    self._fix(model, sizes)
                made = self._core.compile_model(model, self._device, self._config)
            except Exception as e:  # the binding raises RuntimeError and others without a common base
                raise EngineError(f"OpenVINO can't compile {self._path.name} for {self._device}: {_line(e)}") from e
            self._compiled[key] = made
            while len(self._compiled) > _MOST:
                self._compiled.popitem(last=False)
            return made

    def run(self, request: Any, feeds: Mapping[str, NDArray[Any]], budget: Budget) -> None:
        """Run a request on host arrays, which it reads where they lie, and wait.

        Raises:
            EngineError: it failed. CancelledError, DeadlineReached: the budget ended it.
        """
        import openvino

        budget.check()
        # OpenVINO shows no arrays that can't be written to, and keeps none of them alive.
        held = {name: np.require(array, requirements=("C", "W")) for name, array in feeds.items()}
        try:
            for name, array in held.items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
            with budget.on_stop(request.cancel):
                request.start_async()
                request.wait()
        except Exception as e:  # see above
            budget.check()
            raise EngineError(f"the {self.name} graph failed: {_line(e)}") from e
        budget.check()

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self._path))
        except Exception as e:  # see above
            raise EngineError(f"OpenVINO can't read {self._path.name}: {_line(e)}") from e

    def _fix(self, model: Any, sizes: Mapping[str, int]) -> None:
        from openvino import opset13

        for parameter in list(model.get_parameters()):
            if "last_k" in parameter.output(0).names and "last_k" in sizes:
                value = opset13.constant(np.array([sizes["last_k"]], np.int64))
                parameter.output(0).replace(value.output(0))
                model.remove_parameter(parameter)
        left = {n for port in model.inputs for n in port.names}
        model.reshape({name: list(shape(spec, sizes)) for name, spec in self.inputs.items() if name in left})


def shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The sizes of a tensor whose named dimensions are `sizes`."""
    return tuple(d if isinstance(d, int) else sizes[d] for d in spec.shape)


def output(request: Any, name: str) -> NDArray[Any]:
    """A view of what a request computed, valid until it runs again."""
    data: NDArray[Any] = request.get_tensor(name).data
    return data


def _config(bundle: Bundle, device: str, options: OpenVinoOptions) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        config["INFERENCE_NUM_THREADS"] = str(options.threads or usable_threads())
    elif options.keep_compiled:
        config["CACHE_DIR"] = str(cache_directory() / "openvino")
    precision = options.precision
    if precision == "auto" and bundle.manifest.precision == "fp32":
        precision = "f32"
    if precision != "auto":
        config["INFERENCE_PRECISION_HINT"] = precision
    if precision == "f32" and device == "CPU":
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"  # else activations of integer weights are rounded to 8 bits
    return config | options.properties


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
