"""What a built engine really runs, read from the build log: TensorRT prints each layer of the finished engine there.

No GPU is needed for that, unlike for TensorRT's own engine inspector. A line reads `Name: …, LayerType: …, Inputs: [ …
], Constants: [ … ], Outputs: [ … ], TacticName: …, StreamId: …, Metadata: [ONNX Layer: …]…`, a tensor in it
`{ Name: …, Dimensions: …, Datatype: … }`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

_LAYER = re.compile(r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<rest>.*)$")
_TENSOR = re.compile(r"Name: ([^,]+), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\].*?(?:Format/)?Datatype: (\w+)")
_SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")
_PARTS = ("Inputs", "Constants", "Outputs", "TacticName")
_GENERATED = "kgen"  # a kernel of element-wise operations and copies; matrices have kinds of their own
_PACKED = ("Int4", "Int8", "FP8", "FP4")
_BITS = {"Int4": 4, "FP4": 4, "Int8": 8, "FP8": 8, "Half": 16, "BFloat16": 16, "Float": 32, "Int32": 32, "Int64": 64}
_CACHE = re.compile(r"^present\.\d+\.(?:key|value)")


@dataclass(frozen=True)
class Tensor:
    """An input, constant or output of a layer; -1 in the shape: chosen when it runs."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def cache(self) -> str | None:
        """`present.3.key` for a tensor of the KV cache (its name may carry the profile), else None."""
        found = _CACHE.match(self.name)
        return found.group() if found else None

    @property
    def nbytes(self) -> int:
        """Bytes, with 1 for every size that is not fixed."""
        return prod(abs(d) for d in self.shape) * _BITS.get(self.dtype, 0) // 8


@dataclass(frozen=True)
class Layer:
    """One kernel or matrix product of the engine. `nodes`: the ONNX nodes it computes."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def copies_cache(self) -> bool:
        """It only brings a KV cache tensor into another layout."""
        return len(self.inputs) == 1 and self.inputs[0].cache is not None and not any(o.cache for o in self.outputs)

    @property
    def unpacks(self) -> tuple[Tensor, ...]:
        """Quantised weights that it writes out in a wider type, for a matrix product that can't read them."""
        if self.kind != _GENERATED:
            return ()
        return tuple(t for t in self.constants if t.dtype in _PACKED and len(t.shape) > 1)


def read_layers(log: Path) -> list[Layer]:
    """The layers of the engine whose build wrote this log; empty where TensorRT printed none."""
    return list(_layers(log))


def read_scratch(log: Path) -> list[int]:
    """Bytes of working memory that a context of each profile needs at its largest sizes; empty where none is said."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return [int(found.group(1)) for line in lines if (found := _SCRATCH.search(line))]


def _layers(log: Path) -> Iterator[Layer]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _LAYER.match(line)
            if found is None:
                continue
            rest = found["rest"]
            at = [rest.find(f"{part}: ") for part in _PARTS] + [len(rest)]
            if -1 in at:
                continue
            inputs, constants, outputs = (tuple(_tensors(rest[at[i] : at[i + 1]])) for i in range(3))
            tactic = rest[at[3] :].removeprefix("TacticName: ").partition(",")[0]
            nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", rest[at[3] :]))
            yield Layer(found["name"], found["kind"], tactic, inputs, constants, outputs, nodes)


def _tensors(text: str) -> Iterator[Tensor]:
    for name, shape, dtype in _TENSOR.findall(text):
        yield Tensor(name, tuple(int(d) for d in shape.split(",") if d), dtype)


def engine_report(layers: Sequence[Layer], attentions: int, caches: int, profiles: int) -> dict[str, Any]:
    """Findings on a finished engine with `attentions` attention nodes and `caches` KV cache tensors.

    `attention`: "fused" when every attention node became one attention kernel in every profile. `kv_in_place`:
    whether each cache tensor is written by a layer that also reads it. `matrices`: for each product of the graph (layer
    numbers as *) the type of its weights. `unpacked_weights`: quantised weights that are widened in memory on every
    run. `cache_copies`: bytes of the KV cache that one run copies into another layout before it attends.
    """
    fused = sum("mha" in (layer.tactic or layer.name).lower() for layer in layers)
    wanted = attentions * profiles
    report: dict[str, Any] = {
        "attention": "fused" if fused == wanted else f"decomposed ({fused} of {wanted} attention kernels)",
        "kernels": dict(sorted(Counter(layer.kind for layer in layers).items())),
        "matrices": _matrices(layers),
        "unpacked_weights": sorted({_unpacked(layer, t) for layer in layers for t in layer.unpacks}),
    }
    if caches:
        written = {t.cache for layer in layers for t in layer.outputs if t.cache in {i.cache for i in layer.inputs}}
        written.discard(None)
        report["kv_in_place"] = "yes" if len(written) == caches else f"no ({len(written)} of {caches} tensors)"
        report["cache_copies"] = sum(t.nbytes for la in layers if la.copies_cache for t in la.outputs) // profiles
    return report


def _unpacked(layer: Layer, weights: Tensor) -> str:
    size = " x ".join(map(str, weights.shape))
    return f"{_starred(layer.nodes[0] if layer.nodes else layer.name)}: {weights.dtype} {size}"


def _matrices(layers: Sequence[Layer]) -> dict[str, str]:
    table: dict[str, set[str]] = {}
    for layer in layers:
        nodes = [node for node in layer.nodes if "MatMul" in node or "Gemm" in node]
        if not nodes or layer.kind == _GENERATED:
            continue
        weights = max(layer.constants, key=lambda t: prod(abs(d) for d in t.shape), default=None)
        # constants of a product whose weights were widened before it are its two factors alone
        own = weights is not None and len(weights.shape) > 1
        types = table.setdefault(_starred(nodes[0]), set())
        types.add(weights.dtype if own and weights is not None else "of another layer")
    return {node: ", ".join(sorted(types)) for node, types in sorted(table.items())}


def _starred(node: str) -> str:
    return re.sub(r"\.\d+/", ".*/", node)
