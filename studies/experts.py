"""How fast experts are read and multiplied, one layer alone, and what a whole bundle keeps in memory.

    python -m studies.experts [--shape NAME] [--rounds N]   a layer at int4, operator by operator, one thread
    python -m studies.experts --bundle BUNDLE [--steps N]   512 random tokens read, N written: memory and time

Processor time of one thread is what a loaded machine still gives; the fastest round counts. The experts of a step are
drawn anew, so a layer's weights come from memory and not from a cache.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.native import dispatch
from gog_edge.native.contract import DOMAIN, VERSION
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.shapes import SHAPES, PolicyShape

BLOCK, ROWS, STEPS = 32, 512, 16
Array = NDArray[Any]


def layer(shape: PolicyShape, rounds: int) -> list[tuple[str, float, str]]:
    """(what, seconds, rate) of a layer's operators: a token of `STEPS` steps, and `ROWS` tokens at once."""
    rng = np.random.default_rng(0)
    count, top, hidden, inner = shape.experts, shape.top, shape.hidden, shape.intermediate
    up, up_scales = _weights(rng, count, 2 * inner, hidden)
    down, down_scales = _weights(rng, count, hidden, inner)
    router = rng.standard_normal((count, hidden)).astype(np.float32)
    plain = np.ascontiguousarray(up[:top].reshape(-1, *up.shape[2:]))
    plain_scales = np.ascontiguousarray(up_scales[:top].reshape(-1, *up_scales.shape[2:]))
    found = []
    for rows in (1, ROWS):
        ids = [_ids(rng, rows, count, top) for _ in range(STEPS if rows == 1 else 1)]
        x = rng.standard_normal((rows, hidden)).astype(np.float32)
        inside = rng.standard_normal((rows * top, inner)).astype(np.float32)
        shares = np.full((rows, top), 1 / top, np.float32)
        gated: dict[str, Array | None] = {"x": x, "ids": ids[0], "shares": None, "weight": up, "scales": up_scales}
        mixed: dict[str, Array | None] = {
            "x": inside, "ids": ids[0], "shares": shares, "weight": down, "scales": down_scales
        }  # fmt: skip
        cases: tuple[tuple[str, str, Mapping[str, Array | None], dict[str, int], int], ...] = (
            ("gate and up", "ExpertLinearW4", gated, {"N": inner, "gated": 1}, top * 2 * inner * hidden),
            ("down", "ExpertLinearW4", mixed, {"N": hidden}, top * inner * hidden),
            ("router", "Route", {"x": x, "router": router}, {"top": top}, count * hidden),
            (
                "LinearW4 of gate and up's size",
                "LinearW4",
                {"x": x, "weight": plain, "scales": plain_scales},
                {"N": top * 2 * inner},
                top * 2 * inner * hidden,
            ),
        )
        for name, op, inputs, attributes, values in cases:
            runs = _runs(op, inputs, attributes, ids if "ids" in inputs else [])
            seconds = min(_seconds(runs) for _ in range(rounds)) / len(runs)
            size = values * (4.0 if op == "Route" else 0.5 + 2 / BLOCK)
            rate = f"{size / seconds / 1e9:.1f} GB/s" if rows == 1 else f"{2 * rows * values / seconds / 1e9:.0f} GOP/s"
            found.append((f"{name}, {rows} token{'s' if rows > 1 else ''}", seconds, rate))
    buffer = np.ones(1 << 24, np.float64)
    seconds = min(_seconds([lambda: buffer.max()]) for _ in range(rounds))
    return [*found, ("plain read", seconds, f"{buffer.nbytes / seconds / 1e9:.1f} GB/s")]


def _weights(rng: np.random.Generator, count: int, n: int, k: int) -> tuple[Array, Array]:
    """Packed int4 weights of all experts and their scales."""
    packed = -(-n // 32) * 2
    weight = np.frombuffer(rng.bytes(count * packed * k * 8), np.uint8).reshape(count, packed, k // 8, 16, 4)
    return weight, np.full((count, packed, k // BLOCK, 16), 0.01, np.float16)


def _ids(rng: np.random.Generator, rows: int, count: int, top: int) -> Array:
    return np.sort(np.stack([rng.permutation(count)[:top] for _ in range(rows)])).astype(np.int32)


def _runs(
    op: str, inputs: Mapping[str, Array | None], attributes: dict[str, int], ids: Sequence[Array]
) -> list[Callable[[], Any]]:
    """One run for each of `ids` of a node whose inputs stay where they are."""
    import onnxruntime
    from onnx import TensorProto, helper

    given = {name: array for name, array in inputs.items() if array is not None}
    outputs = {"ids_out": TensorProto.INT32, "shares_out": TensorProto.FLOAT} if op == "Route" else {"y": 1}
    node = helper.make_node(op, [n if n in given else "" for n in inputs], list(outputs), domain=DOMAIN, **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "one",
        [value(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in given.items()],
        [value(name, element, None) for name, element in outputs.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if (reason := dispatch.register(options)) is not None:
        raise SystemExit(reason)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in given.items()}
    runs: list[Callable[[], Any]] = []
    choices: Sequence[Array | None] = ids or [None]
    for changed in choices:
        binding = session.io_binding()
        for name, kept in held.items():
            other = name == "ids" and changed is not None
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(changed) if other else kept)
        for name in outputs:
            binding.bind_output(name, "cpu")
        runs.append(partial(session.run_with_iobinding, binding))
    return runs


def _seconds(runs: Sequence[Callable[[], Any]]) -> float:
    start = time.process_time()
    for run in runs:
        run()
    return time.process_time() - start


def whole(bundle: Path, steps: int) -> list[tuple[str, str]]:
    """(what, figures) of a bundle: loaded, `ROWS` random tokens read, `steps` random tokens written one by one."""
    opened = Bundle.open(bundle)
    vocabulary, rng = opened.manifest.tokens.image_pad, np.random.default_rng(1)
    engine = create_engine("cpu", opened, OrtOptions(threads=1, spin=False))
    session = Session(Model.assemble(opened, engine, RunOptions(prefix_cache=False)))
    found = [("loaded", _memory())]
    session.extend(rng.integers(0, min(vocabulary, 600), ROWS).tolist(), given=True)
    seconds = _seconds([session.run])
    found.append((f"{ROWS} tokens read", f"{seconds:.2f} s; {_memory()}"))
    took = []
    for token in rng.integers(0, min(vocabulary, 600), steps).tolist():
        session.extend([token])
        took.append(_seconds([session.run]))
    found.append((f"{steps} tokens written", f"{1000 * min(took):.1f} ms each at best; {_memory()}"))
    engine.close()
    return found


def _memory() -> str:
    """Resident memory: what is this process's own, and what is mapped from files."""
    status = Path("/proc/self/status").read_text("ascii")
    sizes = {k: int(re.search(rf"{k}:\s+(\d+)", status)[1]) / 2**20 for k in ("RssAnon", "RssFile")}  # type: ignore[index]
    return f"{sizes['RssAnon']:.2f} GiB own, {sizes['RssFile']:.2f} GiB mapped"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-vl-30b-a3b", choices=[n for n, s in SHAPES.items() if s.experts])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args(arguments)
    if options.bundle is not None:
        for what, figures in whole(options.bundle, options.steps):
            print(f"{what:32} {figures}")
        return
    for what, seconds, rate in layer(SHAPES[options.shape], options.rounds):
        print(f"{what:44} {1e6 * seconds:9.0f} us  {rate}")


if __name__ == "__main__":
    main()
