"""Run by `test_ort_gpu.py` in a process whose CUDA driver is the stand-in: a cache of ONNX Runtime "on the device"."""

from __future__ import annotations

import ctypes
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from cuda.bindings import driver

from gog_edge.engines.ort.cache import OrtKvCache
from gog_edge.manifest import TensorSpec

HEADS, DIM = 2, 8
HOST, DEVICE = 1, 2


class DeviceValue:
    """What an OrtValue in device memory is to the cache: an address."""

    def __init__(self, shape: list[int], dtype: Any, device: tuple[str, int]) -> None:
        self.shape, self.device = shape, device
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        _, address = driver.cuMemAlloc(self.nbytes)
        self.address = int(address)
        ctypes.memset(self.address, 0xFF, self.nbytes)  # NaN, as left by somebody else

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: list[int], dtype: Any, memory: str, device_id: int) -> DeviceValue:
        return cls(shape, dtype, (memory, device_id))

    def data_ptr(self) -> int:
        return self.address

    def __del__(self) -> None:
        driver.cuMemFree(self.address)


class Binding:
    """Takes the place of a session's binding and keeps what it was given."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.outputs[name] = value

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.inputs[name] = array

    def bind_output(self, name: str, *place: Any) -> None:
        self.outputs[name] = place


def main() -> None:
    driver.cuInit(0)
    stub = ctypes.CDLL("libcuda.so.1")
    onnxruntime.OrtValue = DeviceValue
    names = ("past_key_values.0.key", "past_key_values.0.value")
    graph: Any = SimpleNamespace(
        inputs={name: TensorSpec(name, "float16", (1, HEADS, "cap", DIM)) for name in names},
        outputs={"present.0.key": None, "present.0.value": None},
        device=SimpleNamespace(memory="cuda"),
        device_id=0,
        session=SimpleNamespace(io_binding=Binding),
    )
    live = stub.stub_live()
    cache = OrtKvCache(graph, 4096, 64)
    rows = [np.random.default_rng(n).normal(size=(HEADS, 40, DIM)).astype(np.float16) for n in range(2)]
    cache.write(3, rows)
    before = [stub.stub_copies(HOST, DEVICE), stub.stub_copies(DEVICE, HOST), stub.stub_copies(DEVICE, DEVICE)]
    cache.reserve(100, 43)
    after = [stub.stub_copies(HOST, DEVICE), stub.stub_copies(DEVICE, HOST), stub.stub_copies(DEVICE, DEVICE)]
    kept = all((a == b).all() for a, b in zip(cache.read(3, 43), rows))
    dead = [*cache.read(0, 3), *cache.read(43, cache.capacity)]
    run = cache.bind(1, {"last_k": np.array([1])}, (1, 1, 32))
    binding = run.binding
    pairs = [(binding.inputs[n], binding.outputs["present" + n.removeprefix("past_key_values")]) for n in names]
    report = {
        "capacity": cache.capacity,
        "kept": kept,
        "zero": not any(array.any() for array in dead),
        "growth": [b - a for a, b in zip(before, after)],
        "in_place": all(past is present for past, present in pairs),
        "device": binding.inputs[names[0]].device,
        "logits": binding.outputs["logits"][0],
        "buffers": stub.stub_live() - live,
    }  # fmt: skip
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
