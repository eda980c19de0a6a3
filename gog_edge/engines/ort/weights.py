"""Weights of native graphs in huge pages.

Decoding reads every weight once a token. Mapped from a file they usually lie in pages of 4 KiB, and address translation
then costs a fifth of the time (docs/log.md). So the file is read into anonymous memory that the kernel backs with pages
of 2 MiB, and ONNX Runtime is handed views of it: nothing is copied again. Stock operators pack their weights into
memory of their own and keep the mapping. So do experts, of which a run reads a few: what no row was routed to is not
read at all, and memory that others need is taken from them first.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import available_memory
from gog_edge.errors import BundleError
from gog_edge.manifest import EXPERTS_SUFFIX

HUGE = 1 << 21
_LEAST = 32 << 20  # smaller weights live in caches or are read too seldom to matter
_PIECE = 16 << 20
_ROOM = 128 << 20  # that everything else of a small policy takes: vision tower, caches, a picture
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TYPES: dict[int, Any] = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose bytes lie in `file`, beside the graph."""

    name: str
    element: int
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


def why_mapped(path: Path) -> str | None:
    """Why the weights of the graph file `path` stay mapped; None: they can have huge pages here."""
    size = sum((path.parent / name).stat().st_size for name in {t.file for t in _copied(path)})
    if size < _LEAST:
        return "the weights are small"
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE") or "[never]" in _SWITCH.read_text(encoding="ascii"):
            return "this system has no transparent huge pages"
    except OSError as e:
        return f"this system does not say whether it has huge pages ({e.strerror})"
    available = available_memory()
    if available < size + max(size // 4, _ROOM):
        return f"{available >> 20} MiB of memory are available, a copy of the weights takes {size >> 20}"
    return None


def load(path: Path, threads: int) -> tuple[list[str], list[NDArray[Any]]]:
    """Names of the external initializers of the graph file `path`, and arrays of them in huge pages.

    Raises:
        BundleError: a file is shorter than the graph says, or can't be read.
    """
    tensors = _copied(path)
    files = {name: _read(path.parent / name, threads) for name in sorted({t.file for t in tensors})}
    arrays = []
    for t in tensors:
        data = files[t.file][t.offset : t.offset + t.length]
        dtype = np.dtype(_TYPES[t.element])
        if data.size != t.length or t.length != dtype.itemsize * int(np.prod(t.shape, dtype=np.int64)):
            raise BundleError(f"{path.parent / t.file} does not hold all of {t.name}; export the checkpoint again")
        arrays.append(data.view(dtype).reshape(t.shape))
    return [t.name for t in tensors], arrays


def _copied(path: Path) -> list[ExternalTensor]:
    """The tensors of the graph file `path` that need not stay mapped."""
    found = external_tensors(path.read_bytes())
    return [t for t in found if t.element in _TYPES and not t.file.endswith(EXPERTS_SUFFIX)]


def _read(path: Path, threads: int) -> NDArray[np.uint8]:
    """The file's bytes, from an address that is a multiple of 2 MiB."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        whole: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)  # keeps the mapping alive
        start = -whole.ctypes.data % HUGE
        data = whole[start : start + size]

        def fill(first: int) -> int:
            done, last = first, min(first + _PIECE, size)
            while done < last:
                count = os.preadv(handle, [data[done:last].data], done)
                if count == 0:
                    break
                done += count
            return done - first

        with ThreadPoolExecutor(max(threads, 1)) as pool:  # reading releases the interpreter lock
            if sum(pool.map(fill, range(0, size, _PIECE))) != size:
                raise BundleError(f"{path} became shorter while it was read")
        return data
    except OSError as e:
        raise BundleError(f"{path} can't be read: {e.strerror}") from e
    finally:
        os.close(handle)


# What is needed of onnx.proto: ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto: dims = 1, data_type = 2,
# name = 8, external_data = 13 (StringStringEntryProto: key = 1, value = 2).


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """The initializers of a serialised model that lie in other files.

    Raises:
        BundleError: this is not an ONNX model.
    """
    try:
        found = []
        for number, graph in _fields(memoryview(model)):
            if number != 7 or isinstance(graph, int):
                continue
            for inner, tensor in _fields(graph):
                if inner == 5 and not isinstance(tensor, int):
                    found.append(_tensor(tensor))
        return [t for t in found if t is not None]
    except (IndexError, KeyError, ValueError) as e:
        raise BundleError(f"the graph is no ONNX model ({e}); export the checkpoint again") from e


def _tensor(data: memoryview) -> ExternalTensor | None:
    name, element, shape, place = "", 0, list[int](), dict[str, str]()
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2 and isinstance(value, int):
            element = value
        elif number == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif number == 13 and not isinstance(value, int):
            entry = {key: str(text, "utf-8") for key, text in _fields(value) if not isinstance(text, int)}
            place[entry[1]] = entry.get(2, "")
    if not place:
        return None
    offset, length = int(place.get("offset", "0")), int(place["length"])
    return ExternalTensor(name, element, tuple(shape), place["location"], offset, length)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, varint or bytes) of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > len(data):
            raise ValueError("cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
