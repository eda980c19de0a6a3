"""Experts in a file of their own, one after the other: it stays memory-mapped, and only those that are used are read.

A stack of matrices is read, quantised and written expert by expert, so that an export holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.linear import LinearStore
from gog_edge.export.graph.weightfile import WeightFile
from gog_edge.export.quantize.scheme import CALIBRATED, QuantizedWeight, Scheme
from gog_edge.export.quantize.weights import quantize
from gog_edge.families.target import ExpertStack, Matrix, Value
from gog_edge.manifest import EXPERTS_SUFFIX, DType

Parts = tuple[NDArray[Any], ...]  # of one packed matrix: weights first, then scales and what else there is
Arrange = Callable[[NDArray[Any]], NDArray[Any]]


class ExpertFile:
    """The expert file of a graph, begun when the first stack comes. Use as a context manager."""

    def __init__(self, graph: Path) -> None:
        self._path = graph.with_name(graph.name + EXPERTS_SUFFIX)
        self._open = ExitStack()
        self.data: WeightFile | None = None

    def __enter__(self) -> ExpertFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self) -> WeightFile:
        """The open file."""
        if self.data is None:
            self.data = self._open.enter_context(WeightFile(self._path))
        return self.data


def write_float(store: LinearStore, file: ExpertFile, stack: ExpertStack, dtype: DType, arrange: Arrange) -> Value:
    """The stack in float32 or float16, each matrix [rows, columns] through `arrange` first.

    Raises:
        CheckpointError: a value beyond the range of float16.
    """
    shape: tuple[int, ...] = ()

    def pieces() -> Iterator[NDArray[Any]]:
        nonlocal shape
        for matrix in _matrices(stack):
            rows = matrix.read(0, matrix.rows)
            if dtype == "float16" and np.abs(rows).max() > np.finfo(np.float16).max:
                raise CheckpointError(f"{matrix.label} has values beyond the range of float16; use another precision")
            arranged = arrange(rows).astype(dtype)
            shape = (stack.count, *arranged.shape)
            yield arranged
            store.progress(rows.size)

    blob = file.begin().append_all(pieces())
    return store.g.external(stack.name, blob, dtype, shape)


def write_quantized(
    store: LinearStore, file: ExpertFile, stack: ExpertStack, scheme: Scheme, pack: Callable[[QuantizedWeight], Parts]
) -> tuple[Value, ...]:
    """The stack by `scheme`, each matrix packed: its parts, stacked, named NAME.q, NAME.scale and NAME.zero.

    Where the scheme's method needs calibration, scales are searched without any.
    """
    if scheme.method in CALIBRATED:
        scheme = replace(scheme, method="mse")
    rest: list[Parts] = []
    shape: tuple[int, ...] = ()
    element = ""

    def pieces() -> Iterator[NDArray[Any]]:
        nonlocal shape, element
        for matrix in _matrices(stack):
            rows = matrix.read(0, matrix.rows)
            first, *others = pack(quantize(rows, scheme))
            shape, element = (stack.count, *first.shape), str(first.dtype)
            rest.append(tuple(others))
            yield first
            store.progress(rows.size)

    blob = file.begin().append_all(pieces())
    found = [store.g.external(f"{stack.name}.q", blob, element, shape)]
    for name, parts in zip(("scale", "zero"), zip(*rest)):
        whole = np.stack(parts)
        found.append(_external(store.g, file, f"{stack.name}.{name}", whole))
    return tuple(found)


def _external(g: GraphBuilder, file: ExpertFile, name: str, array: NDArray[Any]) -> Value:
    return g.external(name, file.begin().append(array), str(array.dtype), array.shape)


def _matrices(stack: ExpertStack) -> Iterator[Matrix]:
    return (stack.expert(i) for i in range(stack.count))
