"""Experts as transformers 5 holds them, stacked as [experts, outputs, inputs], however the checkpoint stores them.

Which other layouts are converted is a matter of the family (`Family.other_experts`), because transformers converts no
others: published Qwen3-VL-MoE files have [experts, inputs, outputs], and Qwen3.5-MoE's may have a tensor for each.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.shards import Source
from gog_edge.families.base import Family

_STACK = re.compile(r"(?P<block>.*\.mlp\.experts)\.(?P<kind>gate_up_proj|down_proj)")
_SINGLE = re.compile(r"(?P<block>.*\.mlp\.experts)\.(?P<number>\d+)\.(?P<kind>gate|up|down)_proj\.weight")
_INNER = {"gate_up_proj": 2, "down_proj": 1}  # the axis of the hidden size, as transformers 5 has it


def stacked_experts(source: Source, family: Family) -> Source:
    """`source` with its experts as transformers 5 has them.

    Raises:
        CheckpointError: the experts of a layer are incomplete, or transformers would mix up their axes.
    """
    if family.other_experts == "turned" and family.embedding in source.names():
        return TurnedExperts(source, source.shape(family.embedding)[-1])
    if family.other_experts == "single" and any(_SINGLE.fullmatch(name) for name in source.names()):
        return SingleExperts(source)
    return source


class TurnedExperts:
    """Stacks may lie as [experts, inputs, outputs]: transformers turns those that have not the expected shape."""

    def __init__(self, source: Source, hidden: int) -> None:
        """`hidden`: the decoder's width.

        Raises:
            CheckpointError: a square tensor beside one that is stored the other way: transformers would mix them up.
        """
        self._source = source
        found = {name: match for name in source.names() if (match := _STACK.fullmatch(name))}
        self._turned = {name for name, match in found.items() if _is_turned(source.shape(name), match["kind"], hidden)}
        for name, match in found.items():
            shape = source.shape(name)
            if name not in self._turned and len(shape) == 3 and shape[1] == shape[2]:
                other = f"{match['block']}.{'down_proj' if match['kind'] == 'gate_up_proj' else 'gate_up_proj'}"
                if other in self._turned:
                    raise CheckpointError(
                        f"{name} is square, and {other} is stored as [experts, inputs, outputs]: transformers 5 would "
                        "take the square one the other way round; save the checkpoint with transformers 5 first"
                    )

    def names(self) -> set[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._source.shape(name)
        return (shape[0], shape[2], shape[1]) if name in self._turned else shape

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        values = self._source.rows(name, start, stop)
        return np.ascontiguousarray(values.swapaxes(1, 2)) if name in self._turned else values


class SingleExperts:
    """Every expert has a gate_proj, an up_proj and a down_proj of its own."""

    def __init__(self, source: Source) -> None:
        """Find them.

        Raises:
            CheckpointError: an expert of a layer lacks one, or they differ in shape.
        """
        self._source = source
        counts: dict[str, int] = defaultdict(int)
        singles = {name: match for name in source.names() if (match := _SINGLE.fullmatch(name))}
        for match in singles.values():
            counts[match["block"]] = max(counts[match["block"]], int(match["number"]) + 1)
        self._parts: dict[str, list[tuple[str, ...]]] = {}  # a tuple an expert
        for block, count in counts.items():
            kinds = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
            for stack, parts in kinds.items():
                named = [tuple(f"{block}.{i}.{part}_proj.weight" for part in parts) for i in range(count)]
                for name in (name for expert in named for name in expert):
                    if name not in singles:
                        raise CheckpointError(f"the checkpoint lacks {name}; download it again")
                    if source.shape(name) != source.shape(named[0][0]):
                        raise CheckpointError(f"{name} differs in shape from {named[0][0]}: they do not fit together")
                self._parts[f"{block}.{stack}"] = named
        self._names = (source.names() - singles.keys()) | self._parts.keys()

    def names(self) -> set[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        parts = self._parts.get(name)
        if parts is None:
            return self._source.shape(name)
        rows, columns = self._source.shape(parts[0][0])
        return (len(parts), len(parts[0]) * rows, columns)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        parts = self._parts.get(name)
        if parts is None:
            return self._source.rows(name, start, stop)
        return np.stack([np.concatenate([self._whole(part) for part in expert]) for expert in parts[start:stop]])

    def _whole(self, name: str) -> NDArray[np.float32]:
        return self._source.rows(name, 0, self._source.shape(name)[0])


def _is_turned(shape: tuple[int, ...], kind: str, hidden: int) -> bool:
    axis = _INNER[kind]
    return len(shape) == 3 and shape[axis] != hidden and shape[3 - axis] == hidden
