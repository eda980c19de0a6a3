"""The gated delta rule on one thread: our operator against ONNX Runtime's com.microsoft LinearAttention.

    python -m studies.delta_rule [--rounds 31] [-o delta_rule.json]

Both get the same numbers (q and k normalised and, for theirs, repeated for the value heads they serve) in buffers that
stay, and take turns run by run, so that a machine that others use slows both down. `ours, norm` divides q and k by
their length as well. One token: states take turns, so that they come from memory, and reading as many bytes for their
maximum takes turns with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gog_edge.disk.files import write_text
from gog_edge.errors import BenchError, GogEdgeError
from gog_edge.native import dispatch
from gog_edge.native.contract import DELTA_CHUNK, DOMAIN, VERSION, delta_words

Array = NDArray[np.float32]
_KEYS, _SIZE = 16, 128  # key heads, and channels of a head
_BETWEEN = 32  # tokens since the last border, when one is decoded
_STATES_BYTES = 256 << 20


@dataclass(frozen=True)
class Row:
    """Milliseconds of one subject: of the clock and of the processor. `times`: LinearAttention's over its own."""

    tokens: int
    value_heads: int
    subject: str
    wall_ms: float
    cpu_ms: float
    best_cpu_ms: float
    times: float


@dataclass(frozen=True)
class Job:
    """Tokens that both operators are given: q, k [n, 16 * 128] (of length one), v [n, values * 128], g, beta."""

    q: Array
    k: Array
    v: Array
    g: Array
    beta: Array

    @classmethod
    def made(cls, tokens: int, values: int) -> Job:
        rng = np.random.default_rng(0)
        q, k = (rng.standard_normal((tokens, _KEYS, _SIZE)) for _ in range(2))
        q, k = (x / np.sqrt((x * x).sum(axis=2, keepdims=True) + 1e-6) for x in (q, k))
        v, g = rng.standard_normal((tokens, values * _SIZE)), -np.exp(rng.standard_normal((tokens, values)) - 2)
        parts = (q.reshape(tokens, -1), k.reshape(tokens, -1), v, g, rng.random((tokens, values)))
        return cls(*(np.asarray(x, np.float32) for x in parts))

    @property
    def values(self) -> int:
        """Value heads."""
        return int(self.g.shape[1])


def _session(op: str, domain: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    node = helper.make_node(op, inputs, outputs, domain=domain, **attributes)
    integers = {"length": TensorProto.INT32}
    infos = [helper.make_tensor_value_info(name, integers.get(name, TensorProto.FLOAT), None) for name in inputs]
    graph = helper.make_graph(
        [node], op, infos, [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if domain == DOMAIN and (reason := dispatch.register(options)) is not None:
        raise BenchError(reason)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Subject:
    """An operator with its inputs and outputs bound to buffers that stay; one set for every state."""

    def __init__(self, session: Any, feeds: dict[str, Any], turns: dict[str, int], outputs: dict[str, Any]) -> None:
        self._session, self._bindings, self._runs = session, list[Any](), 0
        made = next(iter(outputs.values()))
        self.y: Array = made
        size = sum(feeds[name].nbytes for name in turns)
        copies = max(1, _STATES_BYTES // size) if turns else 1
        self._kept = list[Any]()
        for _ in range(copies):
            binding = session.io_binding()
            for name, value in {**feeds, **{name: feeds[name].copy() for name in turns}}.items():
                self._bind(binding.bind_input, name, value)
            for name, value in outputs.items():
                self._bind(binding.bind_output, name, value)
            self._bindings.append(binding)

    def _bind(self, bind: Callable[..., None], name: str, value: Any) -> None:
        self._kept.append(value)
        bind(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self) -> tuple[float, float]:
        """Seconds of the clock and of the processor."""
        binding = self._bindings[self._runs % len(self._bindings)]
        self._runs += 1
        wall, cpu = time.perf_counter(), time.process_time()
        self._session.run_with_iobinding(binding)
        return time.perf_counter() - wall, time.process_time() - cpu


def theirs(job: Job) -> Subject:
    """com.microsoft LinearAttention."""
    heads, tokens, group = job.values, len(job.q), job.values // _KEYS
    inputs = ("q", "k", "v", "past", "g", "beta")
    session = _session(
        "LinearAttention", "com.microsoft", inputs, ("y", "present"), update_rule="gated_delta",
        q_num_heads=heads, kv_num_heads=heads, scale=_SIZE**-0.5,
    )  # fmt: skip

    def repeated(x: Array) -> Array:
        return np.repeat(x.reshape(1, tokens, _KEYS, _SIZE), group, axis=2).reshape(1, tokens, -1)

    state = np.zeros((1, heads, _SIZE, _SIZE), np.float32)
    feeds = {"q": repeated(job.q), "k": repeated(job.k), "v": job.v[None], "past": state}
    feeds |= {"g": job.g[None], "beta": job.beta[None]}
    outputs = {"y": np.empty((1, tokens, heads * _SIZE), np.float32), "present": state.copy()}
    return Subject(session, feeds, {"past": 1} if tokens == 1 else {}, outputs)


def ours(job: Job, *, norm: bool) -> Subject:
    """GatedDelta, behind no tokens, or one token between two borders."""
    heads, tokens = job.values, len(job.q)
    attributes = {"key_heads": _KEYS, "value_heads": heads, "key_size": _SIZE, "value_size": _SIZE}
    session = _session(
        "GatedDelta", DOMAIN, ("qkv", "a", "b", "length", "state"), ("y",), **attributes, l2_norm=int(norm)
    )
    total = tokens if tokens > 1 else _BETWEEN + 1
    feeds: dict[str, Any] = {"qkv": np.concatenate([job.q, job.k, job.v], axis=1), "a": job.g, "b": job.beta}
    feeds["length"] = np.array([total - 1], np.int32)
    feeds["state"] = np.zeros((1, delta_words(_KEYS, heads, _SIZE, _SIZE)), np.float32)
    outputs = {"y": np.empty((tokens, heads * _SIZE), np.float32)}
    return Subject(session, feeds, {"state": 1} if tokens == 1 else {}, outputs)


def compare(tokens: int, values: int, rounds: int) -> list[Row]:
    """Theirs and ours in turns; prints a line each.

    Raises:
        BenchError: the native operators are not available, or the results differ.
    """
    job = Job.made(tokens, values)
    subjects = {"LinearAttention": theirs(job), "ours": ours(job, norm=False), "ours, norm": ours(job, norm=True)}
    for subject in subjects.values():
        subject.run()
    y = [subject.y.reshape(tokens, -1) for subject in subjects.values()]
    if max(float(np.abs(x - y[0]).max()) for x in y) > 1e-5 * max(1.0, float(np.abs(y[0]).max())):
        raise BenchError("LinearAttention and GatedDelta give different results here")
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            samples[name].append(subject.run())
    cpu = {name: statistics.median(c for _, c in found) * 1e3 for name, found in samples.items()}
    rows = []
    for name, found in samples.items():
        wall, best = statistics.median(w for w, _ in found) * 1e3, min(c for _, c in found) * 1e3
        rows.append(Row(tokens, values, name, wall, cpu[name], best, cpu["LinearAttention"] / cpu[name]))
        print(
            f"{tokens:6} {values:6}  {name:16} {wall:9.3f} {cpu[name]:9.3f} {best:9.3f} {rows[-1].times:7.2f}",
            flush=True,
        )
    return rows


def step_bandwidth(values: int, rounds: int) -> dict[str, float]:
    """GB/s at which one token reads S, and k and d since the border, and at which the same bytes are read for their
    maximum: each the median of turns, over as many bytes."""
    subject = ours(Job.made(1, values), norm=True)
    needed = 4 * _SIZE * (values * (_SIZE + _BETWEEN) + _KEYS * _BETWEEN)
    plain = np.ones((_STATES_BYTES // needed, needed // 4), np.float32)
    steps, reads = list[float](), list[float]()
    for turn in range(rounds * len(plain) // 4):
        steps.append(subject.run()[0])
        start = time.perf_counter()
        plain[turn % len(plain)].max()
        reads.append(time.perf_counter() - start)
    step, read = (needed / statistics.median(x) / 1e9 for x in (steps, reads))
    print(f"one token, {values} value heads: {needed / 1e6:.2f} MB at {step:.1f} GB/s; only read, at {read:.1f} GB/s")
    return {"value_heads": values, "bytes": needed, "step_gbs": step, "read_gbs": read, "share": step / read}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.delta_rule", description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", type=int, default=8 * DELTA_CHUNK, help="read at once")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    print(f"{'tokens':>6} {'values':>6}  {'':16} {'wall ms':>9} {'CPU ms':>9} {'best':>9} {'times':>7}")
    try:
        rows = [
            row for tokens in (given.tokens, 1) for values in (16, 32) for row in compare(tokens, values, given.rounds)
        ]
        steps = [step_bandwidth(values, given.rounds) for values in (16, 32)]
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    if given.out:
        facts = {"onnxruntime": onnxruntime.__version__, "isa": dispatch.instruction_set(), "rounds": given.rounds}
        write_text(
            given.out, json.dumps({**facts, "rows": [asdict(row) for row in rows], "steps": steps}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
