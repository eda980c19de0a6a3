"""The native operators one by one: cases of the Qwen3-VL-2B shape, and how fast each runs here.

A 1024 x 768 image (3,072 patches), a prefill of 1,024 tokens, decoding after 1,024; linear attention of Qwen3.5-0.8B.
Weights and states of rows that read more than they compute take turns, so that they come from memory. Needs the export
extra (onnx).
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gog_edge.errors import BenchError
from gog_edge.native import dispatch, native_status, packing
from gog_edge.native.contract import ACTIVATIONS, DELTA_CHUNK, DOMAIN, NORMS, VERSION, delta_words
from gog_edge.shapes import SHAPES, VISION_HEADS

Feeds = dict[str, Any]
_PEAKS = {"f32": 0, "bf16": 1, "int8": 2}
_TURNS_BYTES = 256 << 20  # of weights or cache that take turns: several times any cache


@dataclass(frozen=True)
class Case:
    """One node: its inputs in order, attributes, and what it computes or reads. `turns`: inputs that alternate."""

    name: str
    op: str
    feeds: Callable[[np.random.Generator], Feeds]
    attributes: Mapping[str, int]
    flops: float
    precision: str
    read_bytes: float = 0.0
    turns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One measured case. `rate`: GFLOP/s, or GB/s where `unit` says so; `share` of the ceiling, by the best run."""

    name: str
    median_ms: float
    best_ms: float
    rate: float
    unit: str
    share: float
    runs: int


_FEW = 16  # tokens: to this number a case is one of writing, beyond of reading
_DECODER = (
    *("qkv", "cos", "sin", "length", "keys", "values", "q_norm", "k_norm"),
    *("key_scale", "value_scale", "prefill_rows"),
)


def cases() -> list[Case]:
    """Everything that is measured."""
    policy = SHAPES["qwen3-vl-2b"]
    image, hidden, heads = 3072, policy.vision_hidden, VISION_HEADS
    width, mlp = policy.hidden, policy.intermediate
    made = [
        _linear("vision qkv", 8, image, 3 * hidden, hidden, norm="layer"),
        _linear("vision fc1 + gelu", 8, image, 4 * hidden, hidden, norm="layer", activation="gelu_tanh"),
        _linear("vision fc2", 8, image, hidden, 4 * hidden),
    ]
    made += [_vision(f"vision attention {p}", image, heads, 64, p) for p in ("bf16", "int8", "f32")]
    made.append(_vision("window attention bf16", 4096, heads, 80, "bf16", window=64))
    for block in (32, 128):
        made.append(_linear(f"prefill qkv int4/{block}", 4, 1024, 2 * width, width, block=block, norm="rms"))
    made.append(_linear("prefill gate|up int4/32", 4, 1024, 2 * mlp, width, norm="rms", activation="silu_mul"))
    made.append(_linear("prefill down int4/32", 4, 1024, width, mlp))
    made.append(_decoder("prefill attention", 1024, 1024))
    made.append(_decoder("prefill attention behind 8k", 512, 8192))
    for rows in (1, 2, 4, 8):
        made.append(_linear(f"decode gate|up int4/32, {rows} rows", 4, rows, 2 * mlp, width, activation="silu_mul"))
    made.append(_linear("decode head int8", 8, 1, policy.vocab, width))
    made.append(_decoder("decode attention f16", 1, 1024))
    made.append(_decoder("decode attention int8", 1, 1024, bytes_=True))
    made.append(_decoder("check of 4 guesses, attention f16", 5, 1024))
    for rows, name in ((1024, "prefill"), (1, "decode"), (5, "check of 4 guesses,")):
        made += [_delta(f"{name} delta rule", rows, 1024 + 32), _convolution(f"{name} convolution", rows, 1024 + 32)]
    return made


def _linear(
    name: str,
    bits: int,
    m: int,
    n: int,
    k: int,
    *,
    block: int = 32,
    norm: str = "none",
    activation: str = "none",
) -> Case:
    columns = n // 2 if activation == "silu_mul" else n
    groups = 1 if bits == 8 else k // block
    scale_type: Any = np.float32 if bits == 8 else np.float16

    def feeds(rng: np.random.Generator) -> Feeds:
        panels = n // packing.PANEL
        return {
            "x": rng.standard_normal((m, k), np.float32),
            "weight": rng.integers(0, 256, (panels, k * bits // 32, 16, 4), np.uint8),
            "scales": np.full((panels, groups, 16), 0.01, scale_type),
        }

    attributes = {"N": columns, "activation": ACTIVATIONS[activation], "norm": NORMS[norm]}
    size = n * k * bits / 8 + n * groups * np.dtype(scale_type).itemsize
    small = m <= 8
    if small and bits == 4:
        attributes["exact"] = 1  # as rows that are written
    read, turns = (size, ("weight",)) if small else (0.0, ())
    return Case(name, f"LinearW{bits}", feeds, attributes, 2.0 * m * n * k, "int8", read, turns)


def _vision(name: str, n: int, heads: int, hd: int, precision: str, window: int = 0) -> Case:
    def feeds(rng: np.random.Generator) -> Feeds:
        made: Feeds = {"qkv": rng.standard_normal((n, 3 * heads * hd), np.float32), **_rope(n, hd)}
        if window:
            made["gather"] = np.arange(n).reshape(-1, window)
            made["mask"] = np.ones((n // window, window), np.int32)
        return made

    attributes = {"heads": heads, "precision": {"bf16": 0, "f32": 1, "int8": 2}[precision]}
    return Case(name, "VisionAttention", feeds, attributes, 4.0 * n * (window or n) * heads * hd, precision)


def _decoder(name: str, s: int, total: int, *, bytes_: bool = False) -> Case:
    heads, kv, hd, capacity = 16, 8, 128, total + 64

    def feeds(rng: np.random.Generator) -> Feeds:
        shape = (1, kv, capacity, hd)
        rows = rng.integers(-127, 128, shape, np.int8)
        cache: Any = rows if bytes_ else (rows / np.float32(64)).astype(np.float16)
        made: Feeds = {"qkv": rng.standard_normal((s, (heads + 2 * kv) * hd), np.float32), **_rope(s, hd)}
        made |= {"length": np.array([total - 1], np.int32), "keys": cache, "values": cache.copy()}
        made |= {"q_norm": np.ones(hd, np.float32), "k_norm": np.ones(hd, np.float32)}
        if bytes_:
            made |= {name: np.full(shape[:3], 0.02, np.float32) for name in ("key_scale", "value_scale")}
        made["prefill_rows"] = np.array([0, s if s > _FEW else 0], np.int32)
        return made

    op = "DecoderAttentionI8" if bytes_ else "DecoderAttentionF16"
    flops = 4.0 * s * (total - (s - 1) / 2) * heads * hd
    read = 2.0 * kv * total * hd * (1 if bytes_ else 2) if s <= _FEW else 0.0
    turns = ("keys", "values") if s <= _FEW else ()
    return Case(name, op, feeds, {"heads": heads, "kv_heads": kv}, flops, "bf16", read, turns)


def _delta(name: str, s: int, total: int) -> Case:
    """16 heads of 128. A token reads S, and k and d of the tokens since the last border."""
    heads, d = 16, 128
    words, between = delta_words(heads, heads, d, d), (total - s) % DELTA_CHUNK

    def feeds(rng: np.random.Generator) -> Feeds:
        made: Feeds = {"qkv": rng.standard_normal((s, 3 * heads * d), np.float32)}
        made |= {"a": -rng.random((s, heads), np.float32), "b": rng.random((s, heads), np.float32)}
        return made | {"length": np.array([total - 1], np.int32), "state": np.zeros((1, words), np.float32)}

    attributes = {"key_heads": heads, "value_heads": heads, "key_size": d, "value_size": d}
    flops = heads * s * (4.0 * d * d + 2.0 * d * d + 4.0 * d * DELTA_CHUNK)  # of k and q by S, of S, inside a chunk
    read, turns = (4.0 * heads * d * (d + 2 * between), ("state",)) if s <= _FEW else (0.0, ())
    return Case(name, "GatedDelta", feeds, attributes, flops, "f32", read, turns)


def _convolution(name: str, s: int, total: int) -> Case:
    channels, taps = 6144, 4

    def feeds(rng: np.random.Generator) -> Feeds:
        made: Feeds = {"x": rng.standard_normal((s, channels), np.float32)}
        made |= {"weight": rng.standard_normal((taps, channels), np.float32), "length": np.array([total - 1], np.int32)}
        return made | {"history": np.zeros((taps - 1, channels), np.float32)}

    flops, read = 2.0 * s * channels * taps, 4.0 * channels * (2 * s + 2 * taps - 1)
    return Case(name, "CausalConv", feeds, {}, flops, "f32", read, ("weight", "history") if s <= _FEW else ())


def _rope(n: int, hd: int) -> Feeds:
    angle = np.linspace(0, 6, n * hd // 2, dtype=np.float32).reshape(n, hd // 2)
    return {"cos": np.cos(angle), "sin": np.sin(angle)}


def _session(case: Case, feeds: Feeds, threads: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    def info(name: str, value: Any) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)

    names = [name if name in feeds else "" for name in _DECODER] if "keys" in feeds else list(feeds)
    node = helper.make_node(case.op, names, ["y"], domain=DOMAIN, **case.attributes)
    inputs = [info(name, value) for name, value in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "kernel", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    reason = dispatch.register(options)
    if reason is not None:
        raise BenchError(reason)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def peaks(threads: int, seconds: float = 0.3) -> dict[str, float]:
    """GFLOP/s of `threads` cores at once on registers alone, by precision.

    Raises:
        BenchError: the native operators are not available here.
    """
    reason = dispatch.available()
    status = native_status("ops")
    if reason is not None or status is None or status.library is None:
        raise BenchError(reason or "the native operators were not loaded")
    peak = status.library.function("gog_ops_peak", ctypes.c_double, ctypes.c_int, ctypes.c_double)
    with ThreadPoolExecutor(threads) as pool:  # ctypes releases the interpreter lock
        return {
            name: sum(pool.map(lambda _, kind=kind: peak(kind, seconds), range(threads))) / 1e9
            for name, kind in _PEAKS.items()
        }


def measure(case: Case, threads: int, seconds: float, ceilings: dict[str, float], read_gbs: float) -> Row:
    """Run one case for about `seconds` (three times at least)."""
    feeds = case.feeds(np.random.default_rng(0))
    session = _session(case, feeds, threads)
    size = sum(feeds[name].nbytes for name in case.turns)
    copies = max(2, _TURNS_BYTES // size) if size else 1
    sets = [{name: feeds[name].copy() for name in case.turns} for _ in range(copies)]
    samples: list[float] = []
    session.run(None, feeds)
    begin = time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - begin < seconds:
        feeds.update(sets[len(samples) % copies])
        start = time.perf_counter()
        session.run(None, feeds)
        samples.append(time.perf_counter() - start)
    # Memory rates use the median: a best run may have found its weights in a cache.
    best, median = min(samples), statistics.median(samples)
    if case.read_bytes:
        rate, unit, ceiling = case.read_bytes / median / 1e9, "GB/s", read_gbs
    else:
        rate, unit, ceiling = case.flops / best / 1e9, "GFLOP/s", ceilings[case.precision]
    return Row(case.name, median * 1e3, best * 1e3, rate, unit, rate / ceiling, len(samples))
