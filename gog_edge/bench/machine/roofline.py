"""The machine's limits, measured in the same run as the stages that are compared with them.

Bandwidth: the best of several reads of a buffer far larger than the caches. GEMM: the best rate of ONNX Runtime's own
operators by precision, and of this project's native operators where they are built. "Best", because a limit is what the
machine can do; a stage is reported by its median.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge import families
from gog_edge.allowance import usable_threads
from gog_edge.manifest import DecoderSpec, Manifest, VisionSpec
from gog_edge.native import dispatch, packing
from gog_edge.native.contract import DOMAIN, VERSION
from gog_edge.shapes import SHAPES

REPEATS = 7


@dataclass(frozen=True)
class Roofline:
    """`read_gbs`: 10^9 bytes per second. `gemm`: 10^9 multiply-adds times two a second, by precision."""

    threads: int
    read_gbs: float
    gemm: dict[str, float]

    def best(self, other: Roofline) -> Roofline:
        """The higher of both measurements, one by one: a limit is what the machine can do."""
        names = dict.fromkeys((*self.gemm, *other.gemm))
        gemm = {n: max(self.gemm.get(n, 0.0), other.gemm.get(n, 0.0)) for n in names}
        return Roofline(self.threads, max(self.read_gbs, other.read_gbs), gemm)

    def seconds(self, *, flops: float = 0.0, read_bytes: float = 0.0, precision: str = "fp32") -> float:
        """The least time for that work: the larger of arithmetic and memory (Williams et al., 2009)."""
        rate = self.gemm.get(precision) or max(self.gemm.values())
        return max(flops / (rate * 1e9), read_bytes / (self.read_gbs * 1e9))


def measure(threads: int | None = None, *, size_mb: int = 512, gemm_n: int = 1024) -> Roofline:
    """Measure this machine; takes a few seconds and `size_mb` of memory."""
    threads = threads or usable_threads()
    gemm = {"fp32": _numpy_gemm(gemm_n)}
    gemm.update(_ort_gemm(threads, gemm_n))
    gemm.update(_native_gemm(threads))
    return Roofline(threads, _read_bandwidth(threads, size_mb), gemm)


def measure_apart(threads: int | None = None) -> Roofline:
    """`measure` in a process of its own, so that its buffers do not count as the memory of what is measured next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, threads).result()


class BesideProbe:
    """The read bandwidth at this moment, from a process of its own that keeps its buffer: tens of milliseconds a call.

    The bandwidth of a virtual machine moves by the minute; a run is compared with what was read right next to it.
    """

    def __init__(self, threads: int | None = None, *, size_mb: int = 512) -> None:
        self._arguments = (threads or usable_threads(), size_mb)
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self.best = 0.0

    def __call__(self) -> float:
        """10^9 bytes per second; `best` keeps the highest of all calls."""
        found = self._pool.submit(_read_again, *self._arguments).result()
        self.best = max(self.best, found)
        return found

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_KEPT: dict[int, NDArray[np.float64]] = {}  # in the probe's process


def _read_again(threads: int, size_mb: int) -> float:
    if size_mb not in _KEPT:
        _KEPT[size_mb] = np.ones(size_mb * (1 << 20) // 8, np.float64)
    return read_rate(_KEPT[size_mb], threads)


def _best(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some runs, after one that is not counted."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _read_bandwidth(threads: int, size_mb: int) -> float:
    return read_rate(np.ones(size_mb * (1 << 20) // 8, np.float64), threads)


def read_rate(data: NDArray[np.float64], threads: int, repeats: int = REPEATS) -> float:
    """10^9 bytes per second at which `threads` threads read `data` together, the best of `repeats`."""
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        # a maximum reads every byte once and writes none; numpy releases the interpreter lock
        seconds = _best(lambda: list(pool.map(np.max, parts)), repeats)
    return data.nbytes / seconds / 1e9


def _numpy_gemm(n: int) -> float:
    a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    out = np.empty((n, n), np.float32)
    return 2 * n**3 / _best(lambda: np.matmul(a, b, out=out)) / 1e9


def _ort_gemm(threads: int, n: int) -> dict[str, float]:
    """ONNX Runtime's MatMul (fp32), DynamicQuantizeMatMul (int8) and MatMulNBits (int4, blocks of 128)."""
    try:
        import onnx
    except ImportError:
        return {}
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    rates = {}
    x = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    for name, model in _gemm_models(onnx, n).items():
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        rates[name] = 2 * n**3 / _best(lambda s=session: s.run(None, {"x": x})) / 1e9  # type: ignore[misc]
    return rates


def _native_gemm(threads: int) -> dict[str, float]:
    """This project's W8A8 operator, activations quantised on the way, where it can run: a layer of a vision MLP, 3,072
    patches of the 2B shape."""
    import onnxruntime as ort

    try:
        from onnx import TensorProto, helper
    except ImportError:
        return {}
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if dispatch.register(options) is not None:
        return {}
    m, n = 3072, SHAPES["qwen3-vl-2b"].vision_hidden
    k = 4 * n
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {
        "x": rng.standard_normal((m, k), np.float32),
        "w": rng.integers(0, 256, (n // packing.PANEL, k // 4, 16, 4), np.uint8),
        "s": np.full((n // packing.PANEL, 1, 16), 0.01, np.float32),
    }
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    node = helper.make_node("LinearW8", ["x", "w", "s"], ["y"], domain=DOMAIN, N=n)
    graph = helper.make_graph([node], "gemm", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {"int8_native": 2.0 * m * n * k / _best(lambda: session.run(None, feeds)) / 1e9}


def _gemm_models(onnx: Any, n: int) -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    from_array = onnx.numpy_helper.from_array
    scale = np.full(n, 0.01, np.float32)
    fp32 = [from_array(rng.standard_normal((n, n)).astype(np.float32), "w")]
    int8 = [
        from_array(rng.integers(-127, 128, (n, n), np.int8), "w"),
        from_array(scale, "s"),
        from_array(np.zeros(n, np.int8), "z"),
    ]
    blocks = n // 128
    int4 = [
        from_array(rng.integers(0, 256, (n, blocks, 64), np.uint8), "w"),
        from_array(np.full((n, blocks), 0.01, np.float32), "s"),
    ]
    make = onnx.helper.make_node
    nodes = {
        "fp32_ort": (make("MatMul", ["x", "w"], ["y"]), fp32),
        "int8": (make("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["y"], domain="com.microsoft"), int8),
        "int4": (
            make(
                "MatMulNBits",
                ["x", "w", "s"],
                ["y"],
                domain="com.microsoft",
                K=n,
                N=n,
                bits=4,
                block_size=128,
                accuracy_level=4,
            ),
            int4,
        ),
    }
    return {name: _serialize(onnx, node, weights, n) for name, (node, weights) in nodes.items()}


def _serialize(onnx: Any, node: Any, weights: list[Any], n: int) -> bytes:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "gemm",
        [value("x", onnx.TensorProto.FLOAT, [n, n])],
        [value("y", onnx.TensorProto.FLOAT, [n, n])],
        weights,
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def decoder_attention_flops(spec: DecoderSpec, new: int, total: int) -> float:
    """Scores and weighted sum over all layers that attend, `new` queries against on average `total - new / 2` keys."""
    keys = total - new / 2
    layers = spec.layers if spec.linear is None else len(spec.linear.full_layers)
    return 4.0 * layers * spec.heads * spec.head_dim * new * keys


def vision_attention_flops(spec: VisionSpec, patches: int, window_patches: int = 64) -> float:
    """Full layers see every patch, window layers the patches of their window (8 x 8 by default)."""
    full = len(spec.full_layers) if spec.window else spec.depth
    windowed = spec.depth - full
    width = 4.0 * spec.heads * spec.head_dim
    return width * patches * (full * patches + windowed * min(window_patches, patches))


def kv_bytes_read(manifest: Manifest, total: int) -> float:
    """Bytes of the caches that one decoding step reads, and of the states that it reads and writes."""
    token, states = families.named(manifest.family).cache_bytes(manifest.decoder)
    return total * token + 2 * states
