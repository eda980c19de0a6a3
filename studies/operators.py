"""Where the time of a prefill and a decoding step goes, operator by operator.

    python -m studies.operators BUNDLE [--repeats N] [--out REPORT.json]

The cache is filled with random rows up to the wanted context, and 512 tokens are run after it. The time of that run is
split, by ONNX Runtime's own profile, into what each kind of operator took, what went between them, and what this
runtime took around the graph; it is compared with the fastest GEMM, whatever its precision. A decoding step is split by
running each kind alone (isolated_ops.py), and compared with the read bandwidth of the same minute: the weights of a
kind, or the cache's rows, at that bandwidth. Needs the export extra (onnx).
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gog_edge.allowance import usable_threads
from gog_edge.bench.machine.roofline import Roofline, decoder_attention_flops, kv_bytes_read, measure_apart, read_rate
from gog_edge.bench.result import Cell
from gog_edge.bench.statistics import percentile, settled
from gog_edge.bundle import Bundle
from gog_edge.engines.base import KvCache
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import BenchError
from gog_edge.native import dispatch
from gog_edge.runtime.decoder import Decoder, TokenEmbedding
from studies.cells import add_arguments, publish
from studies.isolated_ops import Alone, DecoderFile, random_rows, read_graph
from studies.kernel_cases import peaks

SCENARIO, OURS = "operators", "gog-edge"
CONTEXTS = (1024, 16384)
ROWS, STEPS = 512, 8
READ_BYTES = 512 << 20
ATTENTION, OTHER, BETWEEN, AROUND = "attention", "other operators", "between operators", "around the graph"
REST = "beyond the sum of its kinds"
_ROLE = re.compile(r"layers\.\d+\.(?:\w+\.)?(.+?)\.weight")
_PRODUCTS = ("Linear", "MatMul")


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


def graph_nodes(graph: Any) -> dict[str, Node]:
    """By name: what each node of a graph is for. Weights are named after the checkpoint's tensors."""
    sizes = {t.name: _nbytes(t) for t in graph.initializer}
    nodes = {}
    for node in graph.node:
        weights = [name for name in node.input if name in sizes]
        total = sum(sizes[name] for name in weights)
        largest = max(weights, key=sizes.__getitem__, default="")
        nodes[node.name] = Node(_kind(node.op_type, node.name, largest), total)
    return nodes


def _kind(op: str, name: str, weight: str) -> str:
    if "Attention" in op:
        return ATTENTION
    if not op.startswith(_PRODUCTS):
        return OTHER
    found = _ROLE.search(weight)
    return found[1].replace("_proj", "") if found else "head" if name.startswith("head") else OTHER


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
    """Cells "prefill KIND" and "decode KIND" at each context; a sample of decoding is the median of a round.

    Raises:
        BenchError: a bundle without native operators, or no onnx package.
    """
    bundle = Bundle.open(path)
    stored = bundle.path(bundle.manifest.graphs["decoder"].file)
    graph = read_graph(stored)
    nodes = graph_nodes(graph)
    contexts = [n for n in contexts if n + ROWS + STEPS <= bundle.manifest.decoder.max_context]
    reason = dispatch.available()
    peak = 0.0 if reason is not None else peaks(usable_threads())["bf16"]
    for n, runs in _prefill(bundle, nodes, contexts, repeats).items():
        limits = _prefill_limits(bundle, nodes, roofline, n)
        split = [run.split() for run in runs]
        yield from _cells("prefill", n, split, limits, {ATTENTION: _own_peak(bundle, split, peak, n)})
    file = DecoderFile(stored, graph)
    for n in contexts:
        rounds, reads = _decode(bundle, nodes, file, n, repeats)
        note = f"read {min(reads):.1f} to {max(reads):.1f} GB/s beside"
        limits = _decode_limits(bundle, nodes, percentile(reads, 50), n)
        yield from _cells("decode", n, rounds, limits, dict.fromkeys((*limits, REST), note))


def _prefill(bundle: Bundle, nodes: Mapping[str, Node], contexts: Sequence[int], repeats: int) -> dict[int, list[Run]]:
    """Profiled runs of `ROWS` tokens by context."""
    runs: dict[int, list[Run]] = {n: [] for n in contexts}
    with tempfile.TemporaryDirectory(prefix="gog-edge-bench-") as folder:
        engine = create_engine(None, bundle, OrtOptions(profile=str(Path(folder) / "profile")))
        decoder = Decoder(engine.decoder, TokenEmbedding(bundle), bundle.manifest)
        for n in contexts:
            cache = decoder.new_cache(n + ROWS)
            _fill(cache, n)
            runs[n] = [_run(decoder, cache, n, ROWS) for _ in range(repeats)]
            del cache
        engine.close()
        del engine, decoder
        gc.collect()  # the profile is written when the session ends
        found = [p for p in Path(folder).iterdir() if p.name.startswith("profile-decoder")]
        if len(found) != 1:
            raise BenchError(f"ONNX Runtime wrote {len(found)} profiles of the decoder instead of one")
        read_profile(json.loads(found[0].read_text("utf-8")), nodes, [run for n in contexts for run in runs[n]])
    return runs


def _decode(
    bundle: Bundle, nodes: Mapping[str, Node], file: DecoderFile, context: int, repeats: int
) -> tuple[list[dict[str, float]], list[float]]:
    """(seconds of a step by kind, a round each; bandwidth before and after each round).

    Kinds are measured alone; `REST` is what a whole step takes beyond them.
    """
    engine = create_engine(None, bundle)
    decoder = Decoder(engine.decoder, TokenEmbedding(bundle), bundle.manifest)
    cache = decoder.new_cache(context + 1)
    _fill(cache, context)
    kinds: dict[str, list[str]] = {}
    for name, node in nodes.items():
        if node.kind != OTHER:
            kinds.setdefault(node.kind, []).append(name)
    alone = {kind: Alone(file, names, context) for kind, names in kinds.items()}
    buffer = np.ones(READ_BYTES // 8, np.float64)
    threads = usable_threads()
    rounds: list[dict[str, float]] = []
    reads = [read_rate(buffer, threads)]
    for _ in range(repeats):
        found = {kind: _median(settled(one.run, STEPS)) for kind, one in alone.items()}
        whole = _median(settled(lambda: _run(decoder, cache, context, 1), STEPS))
        rounds.append({**found, REST: whole - sum(found.values())})
        reads.append(read_rate(buffer, threads))
    engine.close()
    return rounds, reads


def _median(samples: Sequence[float]) -> float:
    return percentile(samples, 50)


def _fill(cache: KvCache, tokens: int) -> None:
    """Random rows, so that what is read is memory and not the kernel's page of zeros."""
    rng = np.random.default_rng(1)
    for start in range(0, tokens, 1024):
        stop = min(start + 1024, tokens)
        rows = [random_rows(rng, view.shape, view.dtype) for view in cache.read(start, stop)]
        cache.write(start, rows)


def _run(decoder: Decoder, cache: KvCache, past: int, rows: int) -> Run:
    ids = np.arange(1, rows + 1, dtype=np.int32)
    positions = np.tile(np.arange(past, past + rows, dtype=np.int32), (3, 1))
    start = time.perf_counter()
    decoder.forward(cache, past, ids, positions, read=(0, rows if rows > 1 else 0))
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


def _own_peak(bundle: Bundle, runs: Sequence[Mapping[str, float]], peak: float, context: int) -> str:
    """Attention multiplies in bfloat16, whatever is fastest: its share of that peak (GFLOP/s, registers only)."""
    seconds = _median([run.get(ATTENTION, 0.0) for run in runs])
    if not peak or not seconds:
        return ""
    rate = decoder_attention_flops(bundle.manifest.decoder, ROWS, context + ROWS) / seconds / 1e9
    return f"{rate:.0f} GFLOP/s, {rate / peak:.0%} of the bf16 peak ({peak:.0f})"


def _decode_limits(bundle: Bundle, nodes: Mapping[str, Node], read_gbs: float, context: int) -> dict[str, float]:
    sizes = {k: float(v) for k, v in _bytes_by_kind(nodes).items() if k != OTHER}
    sizes[ATTENTION] = kv_bytes_read(bundle.manifest, context + 1)
    limits = {kind: size / (read_gbs * 1e9) for kind, size in sizes.items()}
    return {**limits, "all": sum(limits.values())}


def _bytes_by_kind(nodes: Mapping[str, Node]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in nodes.values():
        if node.kind not in (ATTENTION, OTHER):
            sizes[node.kind] = sizes.get(node.kind, 0) + node.nbytes
    return sizes


def _cells(
    stage: str, x: int, runs: Sequence[Mapping[str, float]], limits: Mapping[str, float], notes: Mapping[str, str]
) -> Iterator[Cell]:
    kinds = dict.fromkeys(kind for run in runs for kind in run)
    for kind in kinds:
        samples = tuple(run.get(kind, 0.0) for run in runs)
        yield Cell(
            SCENARIO, OURS, f"{stage} {kind}", "s", samples, x=x, limit=limits.get(kind), note=notes.get(kind, "")
        )
    whole = tuple(sum(run.values()) for run in runs)
    yield Cell(SCENARIO, OURS, f"{stage} all", "s", whole, x=x, limit=limits.get("all"), note=notes.get("all", ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m studies.operators", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle with native operators")
    add_arguments(parser, repeats=5)
    given = parser.parse_args(arguments)
    limits = measure_apart()
    return publish(lambda: operator_cells(given.bundle, given.repeats, limits), given, limits)


if __name__ == "__main__":
    sys.exit(main())
