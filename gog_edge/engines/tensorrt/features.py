"""Vision features that stay on the device until somebody on the host asks for them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from gog_edge.crop.gpu import GpuMemory
from gog_edge.engines.base import F32, Features
from gog_edge.engines.tensorrt.memory import Lane, aligned


class DeviceFeatures(Features):
    """`Features` whose arrays lie on the device; `main` and `deepstack` bring them to the host when first read.

    The decoder of the same engine takes its rows from the device instead (`rows`). Making one does not wait for the
    vision tower: `ready` is the event behind its run. The memory is freed when the object is collected.
    """

    def __init__(self, lane: Lane, tokens: int, hidden: int, deepstack: int) -> None:
        """Allocate room for `tokens` features of `hidden` values, and `deepstack` layers of as many. Lane is held."""
        main = aligned(4 * tokens * hidden)
        memory = lane.gpu.allocate(main + aligned(4 * deepstack * tokens * hidden), lane.stream)
        self._set(_lane=lane, _memory=memory, _main_bytes=main, ready=None, _host=None)
        self._set(tokens=tokens, hidden=hidden, layers=deepstack)
        self._set(_end=weakref.finalize(self, lane.bury, memory))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    tokens: int
    hidden: int
    layers: int
    ready: Any
    _lane: Lane
    _memory: GpuMemory
    _main_bytes: int
    _host: tuple[F32, F32 | None] | None

    @property
    def lane(self) -> Lane:
        """The vision tower's stream."""
        return self._lane

    @property
    def address(self) -> int:
        """Of the features [tokens, hidden] float32."""
        return self._memory.address

    @property
    def deepstack_address(self) -> int:
        """Of the DeepStack features [layers, tokens, hidden] float32."""
        return self._memory.address + self._main_bytes

    def finished(self, event: Any) -> None:
        """The run that fills the memory is on the stream, `event` is behind it."""
        self._set(ready=event)

    @property
    def main(self) -> F32:
        """[tokens, hidden]; waits for the tower."""
        return self._on_host()[0]

    @property
    def deepstack(self) -> F32 | None:
        """[layers, tokens, hidden] or None; waits for the tower."""
        return self._on_host()[1] if self.layers else None

    @property
    def nbytes(self) -> int:
        return 4 * self.tokens * self.hidden * (1 + self.layers)

    def _on_host(self) -> tuple[F32, F32 | None]:
        with self._lane.lock:
            if self._host is None:
                main: F32 = np.empty((self.tokens, self.hidden), np.float32)
                deep: F32 = np.empty((self.layers, self.tokens, self.hidden), np.float32)
                with self._lane.use():
                    gpu, stream = self._lane.gpu, self._lane.stream
                    gpu.download(main, self.address, stream)
                    if self.layers:
                        gpu.download(deep, self.deepstack_address, stream)
                    gpu.synchronize(stream)
                self._set(_host=(main, deep if self.layers else None))
            assert self._host is not None
            return self._host

    def __repr__(self) -> str:
        return f"DeviceFeatures(tokens={self.tokens}, hidden={self.hidden}, layers={self.layers})"

    __eq__ = object.__eq__
    __hash__ = object.__hash__
