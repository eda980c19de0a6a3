"""The state of recurrent layers in ONNX Runtime sessions.

Stock operators: two buffers a tensor, read and written in turn. A run reads one and writes the other; only when it has
ended well do they change places. So a run that is interrupted leaves the state as it was, as it does with the rows of a
KV cache. Native operators: one buffer, written in place, which also holds what is needed to take the last tokens back
(`RingState`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.ort.graph import OrtGraph
from gog_edge.errors import EngineError
from gog_edge.native.contract import DELTA_CHUNK

PAST, PRESENT = "past_state.", "present_state."


def state_names(graph: OrtGraph) -> list[str]:
    """The graph's state inputs in its own order; none where every layer attends."""
    return [name for name in graph.inputs if name.startswith(PAST)]


class OrtState:
    """The state of one session, float32. `seen`: after how many tokens it is; 0: zeros. `side`: which of the two
    buffers the next run reads."""

    addresses: tuple[int, ...] = ()  # two buffers that change places have none for long

    def __init__(self, graph: OrtGraph) -> None:
        self._names = state_names(graph)
        self._shapes = [tuple(int(size) for size in graph.inputs[name].shape) for name in self._names]
        self._graph = graph
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

    @property
    def floor(self) -> int:
        """See `RecurrentState.floor`."""
        return self.seen

    def begin(self, past: int, count: int) -> None:
        """A run of `count` tokens after `past` is about to start.

        Raises:
            EngineError: the state is after another number of tokens.
        """
        if not self._names or past == self.seen:
            return
        if past:
            raise _elsewhere(self.seen, past)
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
            memory = self._graph.device.memory
            return [onnxruntime.OrtValue.ortvalue_from_numpy(array, memory, self._graph.device_id) for array in zeros]
        self._arrays[side] = zeros
        return [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in zeros]


class RingState:
    """The state of one session with native operators (`gog_edge.native.contract`), float32: of each layer the last
    inputs of the convolution [R, channels], token t at row t % R, and slots [slots, words] of the delta rule, slot
    i % slots from token 64 i on. Taken back by running from an earlier token; beyond `floor` by `set`."""

    side = 0

    def __init__(self, graph: OrtGraph, kernel: int) -> None:
        """`kernel`: tokens that the convolution sees."""
        import onnxruntime

        self._names = state_names(graph)
        shapes = [tuple(int(size) for size in graph.inputs[name].shape) for name in self._names]
        self._arrays = [np.zeros(shape, np.float32) for shape in shapes]
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._arrays]
        self._kernel = kernel
        self._spare = min(rows for rows, _ in shapes[::2]) - kernel + 1  # tokens that the convolution can take back
        self._slots = min(slots for slots, _ in shapes[1::2])
        self.addresses = [array.ctypes.data for array in self._arrays]
        self.seen = self.floor = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    def bind(self, binding: Any, side: int) -> None:
        """Let a run read and write the buffers."""
        for name, value in zip(self._names, self._values):
            binding.bind_ortvalue_input(name, value)

    def begin(self, past: int, count: int) -> None:
        """See `OrtState.begin`. What the run may overwrite counts as gone, whether it ends well or not."""
        if past == 0:
            self.floor = 0
        elif not self.floor <= past <= self.seen:
            raise _elsewhere(self.seen, past)
        end = past + count
        self.floor = max(self.floor, (end // DELTA_CHUNK - self._slots + 1) * DELTA_CHUNK, end - self._spare)
        self.seen = past

    def ran(self, seen: int) -> None:
        """See `OrtState.ran`."""
        self.seen = seen

    def get(self) -> list[NDArray[np.float32]]:
        """The rows and the slots that what follows needs: [kernel - 1, channels] and [words] of each layer."""
        rows = range(self.seen - self._kernel + 1, self.seen)
        slot = self.seen // DELTA_CHUNK % self._slots
        return [
            np.array(array[slot] if number % 2 else array[[row % len(array) for row in rows]])
            for number, array in enumerate(self._arrays)
        ]

    def set(self, seen: int, arrays: Sequence[NDArray[Any]]) -> None:
        """See `RecurrentState.set_state`."""
        if len(arrays) != len(self._arrays) or any(a.shape[-1:] != b.shape[-1:] for a, b in zip(arrays, self._arrays)):
            raise EngineError(f"a state of {len(arrays)} arrays does not fit a graph that has {len(self._arrays)}")
        for number, array in enumerate(arrays):
            if array.shape[:-1] != (() if number % 2 else (self._kernel - 1,)):
                raise EngineError(f"a state of {list(array.shape)} does not fit this graph")
        rows = range(seen - self._kernel + 1, seen)
        slot = seen // DELTA_CHUNK % self._slots
        for number, (own, array) in enumerate(zip(self._arrays, arrays)):
            own[slot if number % 2 else [row % len(own) for row in rows]] = array
        self.seen = self.floor = seen


def new_state(graph: OrtGraph, kernel: int) -> OrtState | RingState:
    """The state that fits the graph's operators; of no arrays where every layer attends. `kernel`: tokens that the
    convolutions see."""
    ring = any(PRESENT + name.removeprefix(PAST) not in graph.outputs for name in state_names(graph))
    return RingState(graph, kernel) if ring else OrtState(graph)


def _elsewhere(seen: int, past: int) -> EngineError:
    return EngineError(f"the recurrent state is that after {seen} tokens, a run after {past} can't use it")
