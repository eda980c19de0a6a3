"""Experts as transformers 5 holds them, [experts, outputs, inputs], whichever way round the checkpoint stores them.

Published Qwen3-VL-MoE files have [experts, inputs, outputs]; what transformers 5 saves has not. transformers turns a
tensor unless it has the expected shape already, and so does this.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.shards import Source

_STACK = re.compile(r"(?P<block>.*\.mlp\.experts)\.(?P<kind>gate_up_proj|down_proj)")
_INNER = {"gate_up_proj": 2, "down_proj": 1}  # the axis of the hidden size, as transformers 5 has it


class ExpertSource:
    """A source whose expert tensors lie as transformers 5 has them."""

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


def _is_turned(shape: tuple[int, ...], kind: str, hidden: int) -> bool:
    axis = _INNER[kind]
    return len(shape) == 3 and shape[axis] != hidden and shape[3 - axis] == hidden
