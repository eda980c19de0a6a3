"""Where a prefill and a decoding step go, operator by operator, by ONNX Runtime's own profile.

The cache is filled with random rows up to the wanted context, 512 tokens are run behind it, and then single tokens. The
time of a run is split into what each kind of operator took, what ONNX Runtime took between them, and what this runtime
took around the graph. Decoding is held against the read bandwidth of the same minute: an operator's weights, or the
cache's rows, at that bandwidth. Prefill is held against the fastest GEMM of the run, whatever its precision.
"""

from __future__ import annotations

import gc
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gog_edge.bench.result import Cell
from gog_edge.bench.roofline import BesideProbe, Roofline, decoder_attention_flops, kv_bytes_read
from gog_edge.bundle import Bundle
from gog_edge.errors import BenchError
from gog_edge.runtime.decoder import Decoder
from gog_edge.runtime.embedding import TokenEmbedding
from gog_edge.runtime.engines.base import KvCache
from gog_edge.runtime.engines.ort_options import OrtOptions
from gog_edge.runtime.engines.registry import create_engine

SCENARIO, OURS = "operators", "gog-edge"
CONTEXTS = (1024, 16384)
ROWS, STEPS = 512, 24
ATTENTION, OTHER, BETWEEN, AROUND = "attention", "other operators", "between operators", "around the graph"
_ROLE = re.compile(r"layers\.\d+\.(?:\w+\.)?(.+?)\.weight")
_LEAST_WEIGHT = 1 << 14  # bytes; what reads less is "other"


@dataclass(frozen=True)
class Node:
    """What an operator of the graph is for, and the bytes of the weights that it reads."""

    kind: str
    nbytes: int


@dataclass
class Run:
    """One run of the graph. Seconds: as its caller saw it, within ONNX Runtime, by kind of operator."""

    seen: float
    inside: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)

    def split(self) -> dict[str, float]:
        """Every second of the run, by where it went."""
        between = max(self.inside - sum(self.kinds.values()), 0.0)
        return {**self.kinds, BETWEEN: between, AROUND: max(self.seen - self.inside, 0.0)}


def graph_nodes(path: Path) -> dict[str, Node]:
    """By name: what each node of the graph file is for. Weights are named after the checkpoint's tensors.

    Raises:
        BenchError: the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as e:
        raise BenchError("reading a graph's operators needs onnx: pip install 'gog-edge[export]'") from e
    graph = onnx.load(str(path), load_external_data=False).graph
    sizes = {t.name: _nbytes(t) for t in graph.initializer}
    nodes = {}
    for node in graph.node:
        weights = [name for name in node.input if name in sizes]
        total = sum(sizes[name] for name in weights)
        largest = max(weights, key=sizes.__getitem__, default="")
        nodes[node.name] = Node(_kind(node.op_type, node.name, largest, total), total)
    return nodes


def _kind(op: str, name: str, weight: str, nbytes: int) -> str:
    if "Attention" in op:
        return ATTENTION
    if nbytes < _LEAST_WEIGHT:
        return OTHER
    if found := _ROLE.search(weight):
        return found[1].replace("_proj", "")
    return "head" if name.startswith("head") else OTHER


def _nbytes(tensor: Any) -> int:
    lengths = [int(e.value) for e in tensor.external_data if e.key == "length"]
    return lengths[0] if lengths else len(tensor.raw_data)


def read_profile(events: Sequence[Mapping[str, Any]], nodes: Mapping[str, Node], runs: Sequence[Run]) -> None:
    """Fill `runs`, in their order, from the events of a profile that holds exactly them.

    Raises:
        BenchError: the profile holds another number of runs.
    """
    ordered = sorted(events, key=lambda e: float(e.get("ts", 0)))
    whole = [e for e in ordered if e.get("name") == "model_run"]
    if len(whole) != len(runs):
        raise BenchError(f"ONNX Runtime's profile holds {len(whole)} runs instead of {len(runs)}")
    kernels = [e for e in ordered if str(e.get("name", "")).endswith("_kernel_time")]
    at = 0
    for run, event in zip(runs, whole):
        run.inside = float(event["dur"]) * 1e-6
        end = float(event["ts"]) + float(event["dur"])
        while at < len(kernels) and float(kernels[at]["ts"]) < end:
            node = nodes.get(str(kernels[at]["name"]).removesuffix("_kernel_time"))
            kind = node.kind if node is not None else OTHER
            run.kinds[kind] = run.kinds.get(kind, 0.0) + float(kernels[at]["dur"]) * 1e-6
            at += 1


def operator_cells(
    path: Path, repeats: int, roofline: Roofline | None, contexts: Sequence[int] = CONTEXTS
) -> Iterator[Cell]:
    """Cells "prefill KIND" and "decode KIND" at each context; a decoding step is a sample.

    Raises:
        BenchError: no bundle for ONNX Runtime, or no onnx package.
    """
    bundle = Bundle.open(path)
    nodes = graph_nodes(bundle.path(bundle.manifest.graphs["decoder"].file))
    contexts = [n for n in contexts if n + ROWS + STEPS <= bundle.manifest.decoder.max_context]
    beside = BesideProbe()
    try:
        with tempfile.TemporaryDirectory(prefix="gog-edge-bench-") as folder:
            done, reads = _measure(bundle, Path(folder) / "profile", contexts, repeats, beside)
            found = [p for p in Path(folder).iterdir() if p.name.startswith("profile-decoder")]
            if len(found) != 1:
                raise BenchError(f"ONNX Runtime wrote {len(found)} profiles of the decoder instead of one")
            read_profile(json.loads(found[0].read_text("utf-8")), nodes, [run for _, _, run in done])
    finally:
        beside.close()
    for n in contexts:
        prefill = [run.split() for x, rows, run in done if x == n and rows > 1]
        steps = [run.split() for x, rows, run in done if x == n and rows == 1]
        yield from _cells("prefill", n, prefill, _prefill_limits(bundle, nodes, roofline, n), "")
        note = f"read {min(reads[n]):.1f} to {max(reads[n]):.1f} GB/s beside"
        yield from _cells("decode", n, steps, _decode_limits(bundle, nodes, max(reads[n]), n + ROWS), note)


def _measure(
    bundle: Bundle, profile: Path, contexts: Sequence[int], repeats: int, beside: BesideProbe
) -> tuple[list[tuple[int, int, Run]], dict[int, list[float]]]:
    """((context, rows, run) in order, bandwidths by context). The profile is written when the engine is let go."""
    engine = create_engine(None, bundle, OrtOptions(profile=str(profile)))
    decoder = Decoder(engine.decoder, TokenEmbedding(bundle), bundle.manifest.decoder)
    done: list[tuple[int, int, Run]] = []
    reads: dict[int, list[float]] = {}
    for n in contexts:
        cache = decoder.new_cache(n + ROWS + STEPS)
        _fill(cache, n)
        for _ in range(repeats):
            done.append((n, ROWS, _run(decoder, cache, n, ROWS)))
            reads.setdefault(n, []).append(beside())
            done.extend((n, 1, _run(decoder, cache, n + ROWS + i, 1)) for i in range(STEPS))
            reads[n].append(beside())
        del cache
    engine.close()
    del engine, decoder
    gc.collect()
    return done, reads


def _fill(cache: KvCache, tokens: int) -> None:
    """Random rows, so that what is read is memory and not the kernel's page of zeros."""
    rng = np.random.default_rng(1)
    for start in range(0, tokens, 1024):
        stop = min(start + 1024, tokens)
        rows = [_noise(rng, view) for view in cache.read(start, stop)]
        cache.write(start, rows)


def _noise(rng: np.random.Generator, like: Any) -> Any:
    if like.dtype == np.int8:
        return rng.integers(-127, 128, like.shape, np.int8)
    return (rng.random(like.shape, np.float32) - 0.5).astype(like.dtype)


def _run(decoder: Decoder, cache: KvCache, past: int, rows: int) -> Run:
    ids = np.arange(1, rows + 1, dtype=np.int32)
    positions = np.tile(np.arange(past, past + rows, dtype=np.int32), (3, 1))
    start = time.perf_counter()
    decoder.forward(cache, past, ids, positions)
    return Run(time.perf_counter() - start)


def _prefill_limits(
    bundle: Bundle, nodes: Mapping[str, Node], roofline: Roofline | None, context: int
) -> dict[str, float]:
    """Products by their share of all weights; the head runs on one row and has no limit of arithmetic."""
    if roofline is None:
        return {}
    m = bundle.manifest
    rate = max(roofline.gemm.values()) * 1e9
    linear = 2.0 * ROWS * (m.graphs["decoder"].weights - m.decoder.vocab * m.decoder.hidden) / rate
    sizes = _bytes_by_kind(nodes)
    layers = sum(size for kind, size in sizes.items() if kind not in ("head", OTHER))
    limits = {k: linear * size / layers for k, size in sizes.items() if k not in ("head", OTHER)}
    limits[ATTENTION] = decoder_attention_flops(m.decoder, ROWS, context + ROWS) / rate
    return {**limits, "all": sum(limits.values())}


def _decode_limits(bundle: Bundle, nodes: Mapping[str, Node], read_gbs: float, context: int) -> dict[str, float]:
    sizes = {k: float(v) for k, v in _bytes_by_kind(nodes).items() if k != OTHER}
    sizes[ATTENTION] = kv_bytes_read(bundle.manifest.decoder, context + STEPS // 2)
    limits = {kind: size / (read_gbs * 1e9) for kind, size in sizes.items()}
    return {**limits, "all": sum(limits.values())}


def _bytes_by_kind(nodes: Mapping[str, Node]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in nodes.values():
        if node.kind not in (ATTENTION, OTHER):
            sizes[node.kind] = sizes.get(node.kind, 0) + node.nbytes
    return sizes


def _cells(
    stage: str, x: int, runs: Sequence[Mapping[str, float]], limits: Mapping[str, float], note: str
) -> Iterator[Cell]:
    kinds = dict.fromkeys(kind for run in runs for kind in run)
    for kind in kinds:
        samples = tuple(run.get(kind, 0.0) for run in runs)
        yield Cell(SCENARIO, OURS, f"{stage} {kind}", "s", samples, x=x, limit=limits.get(kind), note=note)
    whole = tuple(sum(run.values()) for run in runs)
    yield Cell(SCENARIO, OURS, f"{stage} all", "s", whole, x=x, limit=limits.get("all"), note=note)
