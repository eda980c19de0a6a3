"""Safetensors files read tensor by tensor with plain reads: header check, rows of one tensor, no mapping.

Why not mmap: mapped pages count as resident memory (an export would seem to need the whole checkpoint), and a file
truncated behind our back would end in SIGBUS instead of an error. Format: 8 bytes header length (little-endian),
a JSON object name -> {dtype, shape, data_offsets}, then the data (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError

_MAX_HEADER = 100_000_000  # the format's own limit
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # raw bits; widened by a shift
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CHUNK = 1 << 24  # bytes read at once while converting
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ORIGINAL = "export the original bf16 checkpoint in HF format (config.json and model*.safetensors) instead"


class Source(Protocol):
    """Named tensors that can be read in row ranges; checkpoints are built of layers of this."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start:stop of the first axis (scalars count as one row) as float32."""
        ...


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `start` counts bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def length(self) -> int:
        """Rows of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1


class SafetensorsFile:
    """One safetensors file. The header is checked once; the file is opened for each read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._load_header()

    def _load_header(self) -> None:
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as f:
                head = f.read(8)
                length = int.from_bytes(head, "little")
                if len(head) < 8 or length > _MAX_HEADER:
                    raise CheckpointError(f"{self.path} is not a safetensors file (is it a Git LFS pointer?)")
                if 8 + length > size:
                    raise CheckpointError(f"{self.path} is truncated ({size} bytes); download it again")
                header = json.loads(f.read(length))
        except OSError as e:
            raise CheckpointError(f"{self.path} can't be read: {e.strerror or e}") from e
        except ValueError as e:
            if isinstance(e, CheckpointError):
                raise
            raise CheckpointError(f"{self.path} is not a safetensors file: its header is not JSON") from e
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} is not a safetensors file: its header is not an object")
        metadata = header.pop("__metadata__", None)
        self.metadata = metadata if isinstance(metadata, dict) else {}
        for name, entry in header.items():
            self.tensors[name] = self._entry(name, entry, 8 + length, size)

    def _entry(self, name: str, entry: Any, base: int, file_size: int) -> TensorInfo:
        try:
            dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
            whole = all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)) and start <= stop
        except (TypeError, KeyError, ValueError) as e:
            raise CheckpointError(f"{self.path}: the header entry of {name} is malformed") from e
        if not whole:
            raise CheckpointError(f"{self.path}: the header entry of {name} is malformed")
        if base + stop > file_size:
            raise CheckpointError(f"{self.path} is truncated: {name} ends beyond the file; download it again")
        known = _DTYPES.get(dtype)
        if known is not None:
            expected = known.itemsize
            for n in shape:
                expected *= n
            if expected != stop - start:
                raise CheckpointError(f"{self.path}: {name} has {stop - start} bytes, its shape needs {expected}")
        return TensorInfo(dtype, shape, base + start, stop - start)

    def raw(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop in the stored type; bfloat16 comes as its uint16 bits.

        Raises:
            CheckpointError: a type that can't be read (fp8 …) or a short read.
        """
        info = self.tensors[name]
        dtype = _dtype_of(info, name, self.path)
        inner = info.shape[1:] if info.shape else ()
        stride = dtype.itemsize * int(np.prod(inner, dtype=np.int64))
        out = np.empty((stop - start, *inner) if info.shape else (), dtype)
        self._fill(out, info.start + start * stride, name)
        return out

    def _fill(self, out: NDArray[Any], offset: int, name: str) -> None:
        view = out.reshape(-1).view(np.uint8).data
        try:
            with self.path.open("rb", buffering=0) as f:
                f.seek(offset)
                done = 0
                while done < len(view):
                    got = f.readinto(view[done:])
                    if not got:
                        raise CheckpointError(f"{self.path} is truncated while reading {name}; download it again")
                    done += got
        except OSError as e:
            raise CheckpointError(f"{self.path}: reading {name} failed: {e.strerror or e}") from e

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start:stop as float32, converted in chunks so that only one copy is ever whole."""
        info = self.tensors[name]
        dtype = _dtype_of(info, name, self.path)
        if info.dtype == "F32" or not info.shape:
            return widen(self.raw(name, start, stop), info.dtype)
        inner = info.shape[1:]
        out = np.empty((stop - start, *inner), np.float32)
        step = max(1, _CHUNK // max(1, dtype.itemsize * int(np.prod(inner, dtype=np.int64))))
        for first in range(start, stop, step):
            last = min(stop, first + step)
            out[first - start : last - start] = widen(self.raw(name, first, last), info.dtype)
        return out

    def forget(self) -> None:
        """Tell the kernel that cached pages of this file are not needed again (a hint; ignored where unknown)."""
        if hasattr(os, "posix_fadvise"):
            with self.path.open("rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _dtype_of(info: TensorInfo, name: str, path: Path) -> np.dtype[Any]:
    dtype = _DTYPES.get(info.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{path.name}: {name} is stored as {info.dtype}; export from the bf16, fp16 or fp32 checkpoint"
        )
    return dtype


def widen(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored values as float32; `dtype` is the safetensors name (bfloat16 is the upper half of a float32)."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32, copy=False)


def narrow_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 to bfloat16 bits, round half to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16)).astype(np.uint16)


class ShardSet:
    """The tensors of one checkpoint folder, from the files that transformers reads (docs/checkpoints.md)."""

    def __init__(self, files: dict[str, SafetensorsFile]) -> None:
        self.files = files  # tensor name -> file that holds it

    @classmethod
    def open(cls, root: Path, chosen: Any = None) -> ShardSet:
        """Find and check the weight files in `root`: one model.safetensors, else an index with its shards.

        Args:
            chosen: `transformers_weights` of config.json, a file name that comes before both.

        Raises:
            CheckpointError: no weights, only such as transformers does not read unasked (variants, stray files) or
                nobody should (torch pickles), another format (GGUF, MLX), a missing or truncated shard, or an index
                that does not agree with the shards.
        """
        path = _chosen(root, chosen) if chosen is not None else root / SINGLE
        if chosen is None and not path.is_file():
            path = root / INDEX
        if not path.is_file():
            raise _no_weights(root)
        shards = _indexed(root, path) if path.name.endswith(".json") else [SafetensorsFile(path)]
        files: dict[str, SafetensorsFile] = {}
        for shard in shards:
            if str(shard.metadata.get("format", "")).lower() == "mlx":
                raise CheckpointError(f"{root} is an MLX conversion ({shard.path.name} says so); {_ORIGINAL}")
            for name in shard.tensors:
                if name in files:
                    raise CheckpointError(f"{root} holds {name} twice: in {files[name].path.name}, {shard.path.name}")
                files[name] = shard
        return cls(files)

    def names(self) -> set[str]:
        return set(self.files)

    def info(self, name: str) -> TensorInfo:
        return self.files[name].tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.info(name).shape

    def raw(self, name: str) -> NDArray[Any]:
        """The whole tensor in its stored type."""
        return self.files[name].raw(name, 0, self.info(name).length)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self.files[name].rows(name, start, stop)


def foreign_format(root: Path) -> str | None:
    """What else than a HF checkpoint's weights lies in `root`, in words; None when nothing is known."""
    gguf = sorted(root.glob("*.gguf"))
    if gguf:
        return f"holds GGUF weights (llama.cpp: {gguf[0].name})"
    if (root / "params.json").is_file() and any(root.glob("consolidated.*")):
        return "holds weights in their authors' own layout (params.json, consolidated.*)"
    return None


def _chosen(root: Path, name: Any) -> Path:
    """The file that config.json asks for; transformers takes no other then."""
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(f"{root}/config.json: transformers_weights is {name!r}, not a safetensors file's name")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(f"{root}/config.json: transformers_weights = {name!r} lies outside of the checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{root} lacks {name}, which config.json names as transformers_weights; download it")
    return path


def _no_weights(root: Path) -> CheckpointError:
    """Why a folder without model.safetensors and its index can't be read, and what to do."""
    foreign = foreign_format(root)
    if foreign:
        return CheckpointError(f"{root} {foreign}; {_ORIGINAL}")
    strays = sorted(path.name for path in root.glob("*.safetensors") if path.name != "adapter_model.safetensors")
    parts = [name for name in strays if re.search(r"-\d+-of-\d+\.safetensors$", name)]
    if len(parts) > 1:
        return CheckpointError(f"{root} has {len(parts)} safetensors files but no {INDEX}; download it too")
    if strays:
        return CheckpointError(
            f"{root} has {strays[0]} but no {SINGLE}: transformers does not read it unasked (a variant?); rename it to "
            f"{SINGLE}, or name it as transformers_weights in config.json"
        )
    if any(any(root.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth")):
        return CheckpointError(
            f"{root} has torch pickle weights only, which can run code when read; convert it to safetensors "
            "(transformers: AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(new_folder))"
        )
    return CheckpointError(f"{root} has no model weights: no {SINGLE} and no {INDEX}")


def _indexed(root: Path, index: Path) -> list[SafetensorsFile]:
    """The shards of an index. transformers reads every tensor they hold, whether the index names it or not."""
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = {str(k): str(v) for k, v in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} can't be read as a safetensors index; download it again") from e
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(names.values())):
        path = root / shard
        if path.resolve().parent != root.resolve() and Path(shard).name != shard:
            raise CheckpointError(f"{index} names {shard!r}, which lies outside of the checkpoint")
        if not path.is_file():
            raise CheckpointError(f"{root} lacks {shard}, one of {len(set(names.values()))} shards; download it")
        shards[shard] = SafetensorsFile(path)
    for name, shard in names.items():
        if name not in shards[shard].tensors:
            raise CheckpointError(f"{index.name} places {name} in {shard}, which does not hold it")
    return list(shards.values())
