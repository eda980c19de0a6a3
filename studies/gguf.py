"""Read a GGUF file's settings and tensors: as much of the format as a study of quantised language models needs.

Format: a header, key-value pairs, the tensors' places, then their bytes from the next multiple of `general.alignment`.
Block types read: F32, F16, Q8_0 (32 values: a float16 scale, bytes) and Q4_1 (32 values: float16 scale and minimum,
nibbles; the low ones first).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError

F32 = NDArray[np.float32]
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOAT32, _FLOAT16, _Q4_1, _Q8_0 = 0, 1, 3, 8
_Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("least", "<f2"), ("nibbles", "u1", 16)])
_Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("bytes", "i1", 32)])


class Gguf:
    """An open file. `settings`: its key-value pairs; `read` gives a tensor in float32."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if it is no GGUF file of version 2 or 3."""
        self._data = np.memmap(path, np.uint8, "r")
        self._at = 0
        magic, version, tensors, pairs = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise CheckpointError(f"{path} is no GGUF file of version 2 or 3")
        self.settings: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            self.settings[key] = self._value(self._take("I")[0])
        self._places: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name, (rank,) = self._string(), self._take("I")
            shape = tuple(reversed(self._take(f"{rank}Q")))  # GGUF writes the fastest axis first
            self._places[name] = (shape, *self._take("IQ"))
        step = self.settings.get("general.alignment", 32)
        self._start = -(-self._at // step) * step

    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str) -> F32:
        """Raises CheckpointError for a type of blocks that this page does not read."""
        shape, kind, offset = self._places[name]
        count, at = int(np.prod(shape)), self._start + offset
        if kind in (_FLOAT32, _FLOAT16):
            dtype = np.dtype("<f4" if kind == _FLOAT32 else "<f2")
            return self._data[at : at + count * dtype.itemsize].view(dtype).astype(np.float32).reshape(shape)
        if kind not in (_Q4_1, _Q8_0):
            raise CheckpointError(f"{name} is of GGUF type {kind}, which this study does not read")
        block = _Q4_1_BLOCK if kind == _Q4_1 else _Q8_0_BLOCK
        blocks = self._data[at : at + count // 32 * block.itemsize].view(block)
        scale = blocks["scale"].astype(np.float32)[:, None]
        if kind == _Q8_0:
            return np.asarray(blocks["bytes"] * scale, np.float32).reshape(shape)
        steps = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
        return np.asarray(steps * scale + blocks["least"].astype(np.float32)[:, None], np.float32).reshape(shape)

    def _take(self, form: str) -> tuple[Any, ...]:
        form = "<" + form
        size = struct.calcsize(form)
        self._at += size
        return struct.unpack(form, self._data[self._at - size : self._at].tobytes())

    def _string(self) -> str:
        (length,) = self._take("Q")
        self._at += length
        return bytes(self._data[self._at - length : self._at]).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._take("IQ")
            return [self._value(inner) for _ in range(count)]
        return self._take(_PLAIN[kind])[0]
