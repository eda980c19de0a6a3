"""Weight matrices [rows = outputs, columns = inputs] as the graph sees them, read in row chunks from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gog_edge.errors import CheckpointError
from gog_edge.families.target import Matrix

F32 = NDArray[np.float32]
CHUNK_VALUES = 1 << 26  # float32 values of a chunk: 256 MiB


class TensorSource(Protocol):
    """What the graphs read weights from; `gog_edge.export.checkpoint.reader.Checkpoint` is one."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, dtype: DTypeLike = ...) -> NDArray[Any]: ...

    def read_rows(self, name: str, start: int, stop: int, dtype: DTypeLike = ...) -> NDArray[Any]: ...


def check_shape(source: TensorSource, name: str, expected: tuple[int, ...]) -> None:
    """Fail clearly where checkpoint and config disagree.

    Raises:
        CheckpointError: the tensor is missing or has another shape.
    """
    if name not in source.names():
        block = f"{name.rpartition('.')[0]}.0."  # of the first expert, where each has tensors of its own
        if any(other.startswith(block) for other in source.names()):
            raise CheckpointError(
                f"the checkpoint has tensors for each expert ({block}…) and no {name}, which transformers does not "
                "read for this family: save it with stacked experts first"
            )
        raise CheckpointError(f"the checkpoint has no tensor {name}: it is incomplete or of another family")
    if source.shape(name) != expected:
        raise CheckpointError(
            f"{name} has shape {list(source.shape(name))}, config.json says {list(expected)}: "
            "they do not belong together"
        )


@dataclass(frozen=True)
class Stacked:
    """Matrices of one input stacked along their outputs (q, k and v; gate and up), or a single one. `order`: which
    row of the stack each output is, where that is not the stack's own order."""

    source: TensorSource
    names: tuple[str, ...]
    parts: tuple[int, ...]  # rows of each
    columns: int
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, rows in zip(self.names, self.parts):
            check_shape(self.source, name, (rows, self.columns))

    @property
    def rows(self) -> int:
        return sum(self.parts)

    @property
    def label(self) -> str:
        return joined_label(self.names)

    def read(self, start: int, stop: int) -> F32:
        """Rows start:stop as float32."""
        if self.order:
            runs = [self._stored(first, last) for first, last in _runs(self.order[start:stop])]
            return runs[0] if len(runs) == 1 else np.concatenate(runs)
        return self._stored(start, stop)

    def _stored(self, start: int, stop: int) -> F32:
        """Rows of the stack in its own order."""
        parts, at = [], 0
        for name, rows in zip(self.names, self.parts):
            low, high = max(start - at, 0), min(stop - at, rows)
            if low < high:
                parts.append(self.source.read_rows(name, low, high))
            at += rows
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class FoldedPatches:
    """The patch embedding's Conv3d as a matrix, its temporal slices summed: a still image fills both equally."""

    source: TensorSource
    name: str
    rows: int
    temporal: int
    patch: int

    def __post_init__(self) -> None:
        check_shape(self.source, self.name, (self.rows, 3, self.temporal, self.patch, self.patch))

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def columns(self) -> int:
        return 3 * self.patch**2

    @property
    def label(self) -> str:
        return self.name.removesuffix(".weight")

    def read(self, start: int, stop: int) -> F32:
        """Rows start:stop as float32, columns in (channel, y, x) order."""
        kernel = self.source.read_rows(self.name, start, stop)
        folded: F32 = kernel.sum(axis=2, dtype=np.float64).astype(np.float32).reshape(stop - start, self.columns)
        return folded


@dataclass(frozen=True)
class Experts:
    """The matrices [rows, columns] of all experts, stored as one tensor [count, rows, columns]."""

    source: TensorSource
    name: str
    count: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        check_shape(self.source, self.name, (self.count, self.rows, self.columns))

    def expert(self, index: int) -> Matrix:
        """The matrix of one of them."""
        return Expert(self, index)


@dataclass(frozen=True)
class Expert:
    """One expert's matrix; nothing else of the tensor is read."""

    stack: Experts
    index: int

    @property
    def rows(self) -> int:
        return self.stack.rows

    @property
    def columns(self) -> int:
        return self.stack.columns

    @property
    def names(self) -> tuple[str, ...]:
        return (self.stack.name,)

    @property
    def label(self) -> str:
        return f"{self.stack.name}.{self.index}"

    def read(self, start: int, stop: int) -> F32:
        """Rows start:stop as float32."""
        whole: F32 = self.stack.source.read_rows(self.stack.name, self.index, self.index + 1)
        return whole[0, start:stop]


def chunks(matrix: Matrix, multiple: int = 1) -> Iterator[tuple[int, int, F32]]:
    """(start, stop, rows start:stop) over the whole matrix, a bounded number of values at a time."""
    step = max(CHUNK_VALUES // matrix.columns // multiple, 1) * multiple
    for start in range(0, matrix.rows, step):
        stop = min(start + step, matrix.rows)
        yield start, stop, matrix.read(start, stop)


def _runs(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, one past the last) of each stretch of consecutive numbers."""
    first = 0
    for at in range(1, len(order) + 1):
        if at == len(order) or order[at] != order[at - 1] + 1:
            yield order[first], order[at - 1] + 1
            first = at


def joined_label(names: tuple[str, ...]) -> str:
    """a.q_proj.weight, a.k_proj.weight -> a.q_proj+k_proj; one name alone: a.q_proj."""
    heads = [name.removesuffix(".weight") for name in names]
    return heads[0] + "".join("+" + head.rpartition(".")[2] for head in heads[1:])
