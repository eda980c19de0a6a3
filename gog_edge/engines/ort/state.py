"""The state of recurrent layers in ONNX Runtime sessions: two buffers a tensor, read and written in turn.

A run reads one and writes the other; only when it has ended well do they change places. So a run that is interrupted
leaves the state as it was, as it does with the rows of a KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.ort.graph import OrtGraph
from gog_edge.errors import EngineError

PAST, PRESENT = "past_state.", "present_state."


def state_names(graph: OrtGraph) -> list[str]:
    """The graph's state inputs in its own order; none where every layer attends."""
    return [name for name in graph.inputs if name.startswith(PAST)]


class OrtState:
    """The state of one session, float32. `seen`: after how many tokens it is; 0: zeros. `side`: which of the two
    buffers the next run reads."""

    def __init__(self, graph: OrtGraph) -> None:
        self._names = state_names(graph)
        self._shapes = [tuple(int(size) for size in graph.inputs[name].shape) for name in self._names]
        self._device = (graph.device.memory, graph.device_id)
        self._host = graph.device.memory == "cpu"
        self.seen = self.side = 0
        self._arrays: list[list[NDArray[np.float32]]] = [[], []]  # on the host only: what the values show
        self._values: list[list[Any]] = [self._make(side) for side in (0, 1)]

    @property
    def nbytes(self) -> int:
        return 2 * 4 * sum(math.prod(shape) for shape in self._shapes)

    def bind(self, binding: Any, side: int) -> None:
        """Let a run read buffer `side` and write the other."""
        for name, past, present in zip(self._names, self._values[side], self._values[1 - side]):
            binding.bind_ortvalue_input(name, past)
            binding.bind_ortvalue_output(PRESENT + name.removeprefix(PAST), present)

    def begin(self, past: int) -> None:
        """A run after `past` tokens is about to start.

        Raises:
            EngineError: the state is after another number of tokens.
        """
        if not self._names or past == self.seen:
            return
        if past:
            raise EngineError(f"the recurrent state is that after {self.seen} tokens, a run after {past} can't use it")
        self.set(0, [np.zeros(shape, np.float32) for shape in self._shapes])

    def ran(self, seen: int) -> None:
        """The run has ended well, after `seen` tokens in all."""
        self.seen, self.side = seen, 1 - self.side if self._names else 0

    def get(self) -> list[NDArray[np.float32]]:
        """Copies of the tensors, in the graph's order; see `RecurrentState.state`."""
        shown = self._arrays[self.side] if self._host else [value.numpy() for value in self._values[self.side]]
        return [np.array(array) for array in shown]

    def set(self, seen: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `RecurrentState.set_state`."""
        if [array.shape for array in arrays] != self._shapes:
            raise EngineError(f"a state of {len(arrays)} arrays does not fit a graph that has {len(self._shapes)}")
        for number, array in enumerate(arrays):
            if self._host:
                self._arrays[self.side][number][...] = array
            else:
                self._values[self.side][number].update_inplace(np.ascontiguousarray(array, np.float32))
        self.seen = seen

    def _make(self, side: int) -> list[Any]:
        import onnxruntime

        zeros = [np.zeros(shape, np.float32) for shape in self._shapes]
        if not self._host:
            return [onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._device) for array in zeros]
        self._arrays[side] = zeros
        return [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in zeros]
