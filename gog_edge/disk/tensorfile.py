"""Named arrays in one file with a JSON header: what sessions, KV prefixes and vision features are saved as.

    magic 8 | header length u64 | header JSON | padding to 64 | array 0 | padding to 64 | array 1 … | end mark 8

Little-endian; every array has its offset and CRC-32 in the header, and the header names the size of the file, so a
truncated or altered file is refused, never half read. No pickle: reading runs no code. Writing goes to a temporary
file beside the target and is renamed at the end, so a full disk or a killed process leaves the old file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.disk.files import write_whole
from gog_edge.errors import SessionError

_MAGIC, _END = b"GOGTENS1", b"GOGTEND1"
_ALIGN = 64
_MAX_HEADER = 64 << 20
_DTYPES = frozenset({"float32", "float16", "int8", "uint8", "int32", "int64"})


def write_tensors(path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write atomically.

    Raises:
        SessionError: the disk is full or the folder can't be written; an older file stays as it was.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        write_whole(path, _pieces(header, contiguous))
    except OSError as e:
        raise SessionError(f"can't write {path} ({e.strerror or e}); what was there before is unchanged") from e


def _pieces(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """The file's content in order, arrays as memory views (not copied)."""
    entries: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        if str(array.dtype) not in _DTYPES:
            raise SessionError(f"array {name!r} is {array.dtype}, which this format does not hold")
        entries[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "crc32": zlib.crc32(_bytes(array))}
    # Offsets are relative to the end of the header, so that they do not depend on its length.
    offset = 0
    for name, array in arrays.items():
        entries[name]["offset"] = offset
        offset = _up(offset + array.nbytes)
    text = json.dumps({"header": dict(header), "arrays": entries, "bytes": offset}, ensure_ascii=False).encode(
        errors="surrogatepass"
    )
    start = len(_MAGIC) + 8 + len(text)
    pieces: list[Any] = [_MAGIC, len(text).to_bytes(8, "little"), text, b"\0" * (_up(start) - start)]
    for array in arrays.values():
        pieces += [_bytes(array), b"\0" * (_up(array.nbytes) - array.nbytes)]
    return [*pieces, _END]


def read_tensors(path: Path, *, check: bool = True) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """(header, arrays); arrays are read-only maps of the file.

    Args:
        check: compare every array with its CRC-32 (about 1 GB/s); the structure is always checked.

    Raises:
        SessionError: missing, truncated, altered, or not such a file.
    """
    try:
        with path.open("rb") as f:
            head = f.read(len(_MAGIC) + 8)
            if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + 8:
                raise SessionError(f"{path} is not a gog-edge tensor file")
            length = int.from_bytes(head[len(_MAGIC) :], "little")
            if length > _MAX_HEADER:
                raise SessionError(f"{path} is damaged: its header claims {length} bytes")
            text = f.read(length)
            size = f.seek(0, os.SEEK_END)
            f.seek(max(size - len(_END), 0))
            end = f.read()
    except OSError as e:
        raise SessionError(f"can't read {path} ({e.strerror or e})") from e
    base = _up(len(_MAGIC) + 8 + length)
    try:
        data = json.loads(text)
        header, entries, total = dict(data["header"]), dict(data["arrays"]), int(data["bytes"])
        if end != _END or size != base + total + len(_END):
            raise SessionError(f"{path} is truncated: {size} of {base + total + len(_END)} bytes are there")
        arrays = {str(name): _map(path, base, total, entry, check) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, SessionError):
            raise
        raise SessionError(f"{path} is damaged (its header can't be read: {e})") from e
    return header, arrays


def _map(path: Path, base: int, total: int, entry: Mapping[str, Any], check: bool) -> NDArray[Any]:
    shape = tuple(int(n) for n in entry["shape"])
    if entry["dtype"] not in _DTYPES or min(shape, default=0) < 0:
        raise SessionError(f"{path} is damaged: an array of {entry['dtype']} {list(shape)}")
    dtype = np.dtype(entry["dtype"])
    offset, count = int(entry["offset"]), int(np.prod(shape, dtype=np.int64))
    if offset < 0 or offset + count * dtype.itemsize > total:
        raise SessionError(f"{path} is damaged: an array lies outside of the file")
    if count == 0:
        return np.zeros(shape, dtype)
    array: NDArray[Any] = np.memmap(path, dtype, "r", base + offset, shape)
    if check and zlib.crc32(_bytes(array)) != entry["crc32"]:
        raise SessionError(f"{path} is damaged: the checksum of an array differs")
    return array


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _up(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN
