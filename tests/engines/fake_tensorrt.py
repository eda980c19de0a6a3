"""A stand-in for the `tensorrt_rtx` module: the names that our code uses, on ONNX Runtime and the stand-in CUDA driver.

A "plan" is a small JSON file that names a bundle and a graph. `test_tensorrt_calls.py` checks that every name here
exists in the real module, so nothing can be used that TensorRT does not have.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.engines.tensorrt.plan import PlanRequest
from tests.engines.host_gpu import HostContext, HostPlan

__version__ = "1.7.0.0"
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32"}
_CALLBACK = ctypes.CFUNCTYPE(None)
events: list[str] = []  # what was done besides running


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 2
    INT32 = 3


class ExecutionContextAllocationStrategy(enum.Enum):
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class ILogger:
    pass


class _Driver:
    """What `HostPlan` asks of its owner, on raw addresses and the stand-in driver's streams."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._put = ctypes.CDLL("libcuda.so.1").stub_put
        self._put.argtypes = [ctypes.c_void_p, _CALLBACK]
        self._kept: list[Any] = []  # graphs call back later

    def bytes_at(self, address: int, nbytes: int) -> NDArray[Any]:
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def put(self, stream: int, what: str, work: Callable[[], None], *details: Any) -> None:
        callback = _CALLBACK(work)
        self._kept.append(callback)
        assert self._put(stream, callback) == 0


class IHostMemory(bytes):
    pass


class IRuntimeCache:
    def serialize(self) -> IHostMemory:
        return IHostMemory(b"kernels")

    def deserialize(self, blob: Any) -> bool:
        events.append("kernels loaded" if bytes(blob) == b"kernels" else "kernels refused")
        return bytes(blob) == b"kernels"


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        return isinstance(cache, IRuntimeCache)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine, self._strategy = engine, config.dynamic_shapes_kernel_specialization_strategy
        self._context: HostContext | None = None
        self._memory = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._context is not None, "the profile comes first"
        assert memory % 256 == 0 and size >= self._engine.get_device_memory_size_for_profile_v2(0)
        self._memory = memory

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream
        wanted = DynamicShapesKernelSpecializationStrategy
        assert self._strategy is (wanted.EAGER if profile else wanted.LAZY)
        self._context = HostContext(self._engine._plan, profile)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._context is not None
        self._context.shape(name, tuple(shape))
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._context is not None and isinstance(memory, int)
        self._context.bind(name, memory)
        return True

    def infer_shapes(self) -> list[str]:
        assert self._context is not None
        return sorted(self._engine._plan.tensors.keys() - self._context._addresses.keys())

    def execute_async_v3(self, stream: int) -> bool:
        assert self._context is not None and self._memory and isinstance(stream, int)
        self._context.enqueue(stream)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return isinstance(stream, int)


class ICudaEngine:
    num_optimization_profiles = 0
    num_io_tensors = 0

    def __init__(self, plan: HostPlan) -> None:
        self._plan = plan
        self.num_io_tensors, self.num_optimization_profiles = len(plan.tensors), plan.profiles

    def get_tensor_name(self, index: int) -> str:
        return list(self._plan.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._plan.tensors[name].is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_DTYPES[self._plan.tensors[name].dtype]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._plan.tensors[name].shape

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self._plan.tensors[name].host else TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._plan.tensors[name].alias

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        low, high = self._plan.limits(name, profile)
        return [low, low, high]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 4096

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig) -> IExecutionContext:
        return IExecutionContext(self, config)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self._logger = logger

    def deserialize_cuda_engine(self, plan: Any) -> ICudaEngine | None:
        try:
            told = json.loads(bytes(plan))
        except ValueError:
            self._logger.log("Severity.ERROR", "the plan is of\nanother version")  # type: ignore[attr-defined]
            return None
        bundle = Bundle.open(told["bundle"])
        graph = bundle.manifest.graphs[told["graph"]]
        request = PlanRequest(bundle.root, bundle.path(graph.file), graph, told["report"])
        return ICudaEngine(HostPlan(_Driver(), request, 1))  # type: ignore[arg-type]


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._ready = False

    def get_missing_weights(self) -> list[str]:
        return [] if self._ready else ["w"]

    def refit_cuda_engine(self) -> bool:
        events.append("refitted")
        return self._ready


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter = refitter

    def refit_from_file(self, model: str) -> bool:
        self._refitter._ready = model.endswith(".onnx")
        return self._refitter._ready
