"""Linear layers: a matrix of the checkpoint becomes stored weights in some precision and the node that uses them.

`LinearStore` reads, quantises and writes row chunk by row chunk; its subclasses know one target's operators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.graph import packing
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.matrix import TensorSource, check_shape, chunks
from gog_edge.export.graph.weightfile import Blob
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import QuantizedWeight, Scheme
from gog_edge.export.quantize.weights import quantize, quantize_rows
from gog_edge.families.target import Matrix, Role, Value, tensor_class
from gog_edge.manifest import DType

FLOAT32 = Scheme(32)
Progress = Callable[[int], None]


def ignore_progress(count: int) -> None:
    """Reports nothing."""


@dataclass
class LinearStore(ABC):
    """What all targets share. `shared`: float32 matrices that lie in another file of the bundle already.

    `stats` gives a tensor's calibration by weight name; `progress` is told the weight values done.
    """

    g: GraphBuilder
    source: TensorSource
    recipe: Recipe
    stats: Callable[[str], Any] | None = None
    progress: Progress = ignore_progress
    shared: dict[str, Blob] = field(default_factory=dict)

    @abstractmethod
    def linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], role: Role) -> Value:
        """x [n, columns] @ weight.T + biases, by the recipe's scheme for this role and name; of x's type."""

    def gated(self, x: Value, weight: Matrix, biases: tuple[str, ...], role: Role) -> Value | None:
        """silu(gate) * up of a stacked [gate; up] in one node; None where there is no such node."""
        return None

    def scheme(self, weight: Matrix, role: Role) -> Scheme:
        """The scheme for a matrix; one whose parts are overridden differently follows its first part."""
        kind = tensor_class(role)
        return FLOAT32 if kind is None else self.recipe.scheme(kind, weight.names[0])

    def bias(self, weight: Matrix, names: tuple[str, ...], dtype: DType = "float32") -> Value | None:
        """The biases of a matrix as one vector, or None."""
        joined = self.read_bias(weight, names)
        return None if joined is None else self.g.cast(self.g.weight(f"{weight.label}.bias", joined), dtype)

    def read_bias(self, weight: Matrix, names: tuple[str, ...]) -> NDArray[np.float32] | None:
        """The biases of a matrix [rows], joined; None when there are none.

        Raises:
            CheckpointError: one is missing or they have another length than the matrix.
        """
        if not names:
            return None
        for name in names:
            check_shape(self.source, name, self.source.shape(name)[:1] if name in self.source.names() else (0,))
        joined: NDArray[np.float32] = np.concatenate([self.source.read(name, np.float32) for name in names])
        if joined.shape != (weight.rows,):
            check_shape(self.source, names[0], (weight.rows,))
        return joined

    def float_rows(self, weight: Matrix, dtype: DType) -> Value:
        """The matrix [rows, columns] in float32 or float16, streamed."""
        name = f"{weight.label}.weight"
        if self.g.has(name):
            return Value(name, dtype)
        shared = self.shared.get(weight.names[0]) if dtype == "float32" and len(weight.names) == 1 else None
        blob = shared or self.g.data.append_all(self._float_chunks(weight, dtype))
        if shared:
            self.progress(weight.rows * weight.columns)
        return self.g.external(name, blob, dtype, (weight.rows, weight.columns))

    def quantized(self, weight: Matrix, scheme: Scheme) -> QuantizedWeight:
        """The whole matrix, quantised; only a chunk of it is ever in float32."""

        def read(start: int, stop: int) -> NDArray[np.float32]:
            self.progress((stop - start) * weight.columns)
            return weight.read(start, stop)

        return quantize_rows(read, (weight.rows, weight.columns), scheme, self._stats(weight))

    def quantized_chunks(self, weight: Matrix, scheme: Scheme) -> Iterator[QuantizedWeight]:
        """The matrix in row chunks, quantised one by one."""
        stats = self._stats(weight)
        for _, _, rows in chunks(weight):
            yield quantize(rows, scheme, stats)
            self.progress(rows.size)

    def _stats(self, weight: Matrix) -> Any:
        return None if self.stats is None else self.stats(weight.names[0])

    def _float_chunks(self, weight: Matrix, dtype: DType) -> Iterator[NDArray[Any]]:
        for _, _, rows in chunks(weight):
            if dtype == "float16" and np.abs(rows).max() > np.finfo(np.float16).max:
                raise CheckpointError(f"{weight.label} has values beyond the range of float16; use another precision")
            yield rows.astype(dtype)
            self.progress(rows.size)


class OrtLinear(LinearStore):
    """ONNX Runtime: Gemm (float), DynamicQuantizeMatMul (int8 per row), MatMulNBits (int4 and int8 in blocks)."""

    def linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], role: Role) -> Value:
        scheme = self.scheme(weight, role)
        bias = self.bias(weight, biases, x.dtype)
        if scheme.is_float:
            stored = self.float_rows(weight, "float32" if scheme.bits == 32 else "float16")
            return self.g.op("Gemm", x, self.g.cast(stored, x.dtype), bias, transB=1)
        if scheme.bits == 8 and not scheme.block:
            return self._dynamic(x, weight, bias, scheme)
        return self._nbits(x, weight, bias, scheme)

    def _dynamic(self, x: Value, weight: Matrix, bias: Value | None, scheme: Scheme) -> Value:
        """uint8 activations with one scale for the whole input, int8 weights with a scale per output."""
        name = f"{weight.label}.weight"
        if not self.g.has(f"{name}.q"):
            quantized = self.quantized(weight, scheme)
            self.g.weight(f"{name}.q", packing.transposed(quantized.q))
            self.g.weight(f"{name}.scale", np.asarray(quantized.scales, np.float32).reshape(-1))
        q, scale = Value(f"{name}.q", "int8"), Value(f"{name}.scale")
        return self.g.op("DynamicQuantizeMatMul", x, q, scale, None, bias, domain="com.microsoft")

    def _nbits(self, x: Value, weight: Matrix, bias: Value | None, scheme: Scheme) -> Value:
        name = f"{weight.label}.weight"
        blocks = -(-weight.columns // scheme.block)
        if not self.g.has(f"{name}.q"):
            scales, zeros = [], []
            with self.g.data.blob() as (out, done):
                for part in self.quantized_chunks(weight, scheme):
                    b, scale, zero = packing.matmul_nbits(part)
                    out.write(b)
                    scales.append(scale.astype(x.dtype))
                    zeros.append(zero)
            self.g.external(f"{name}.q", done[0], "uint8", (weight.rows, blocks, scheme.block * scheme.bits // 8))
            self.g.weight(f"{name}.scale", np.concatenate(scales))
            if not scheme.symmetric:
                self.g.weight(f"{name}.zero", np.concatenate([zero for zero in zeros if zero is not None]))
        return self.g.op(
            "MatMulNBits",
            x,
            Value(f"{name}.q", "uint8"),
            Value(f"{name}.scale", x.dtype),
            None if scheme.symmetric else Value(f"{name}.zero", "uint8"),
            None,
            bias,
            domain="com.microsoft",
            K=weight.columns,
            N=weight.rows,
            bits=scheme.bits,
            block_size=scheme.block,
            accuracy_level=4 if x.dtype == "float32" else 0,  # int8 activations; CUDA knows its own way only
        )


class PortableLinear(LinearStore):
    """Opset only: MatMul over float weights or over DequantizeLinear (INT4 in blocks, INT8 per output).

    Weights lie as [columns, rows], which is what MatMul takes and what both TensorRT's and ONNX Runtime's
    DequantizeLinear + MatMul fusions look for. Schemes have been through `fit.for_portable`.
    """

    def linear(self, x: Value, weight: Matrix, biases: tuple[str, ...], role: Role) -> Value:
        scheme = self.scheme(weight, role)
        bias = self.bias(weight, biases, x.dtype)
        if scheme.is_float:
            half = scheme.bits == 16 or x.dtype == "float16"
            stored = self.g.cast(self._float(weight, "float16" if half else "float32"), x.dtype)
        else:
            stored = self._dequantized(weight, scheme, x.dtype)
        y = self.g.op("MatMul", x, stored)
        return y if bias is None else self.g.op("Add", y, bias)

    def _float(self, weight: Matrix, dtype: DType) -> Value:
        name = f"{weight.label}.weight"
        if not self.g.has(name):
            whole = np.empty((weight.columns, weight.rows), dtype)
            for start, stop, rows in chunks(weight):
                whole[:, start:stop] = rows.T
                self.progress(rows.size)
            self.g.weight(name, whole)
        return Value(name, dtype)

    def _dequantized(self, weight: Matrix, scheme: Scheme, dtype: DType) -> Value:
        blocked = scheme.bits == 4
        if blocked and weight.columns % scheme.block:  # blocks must fill the axis: keep 8 bits
            blocked, scheme = False, replace(scheme, bits=8, block=0, method="rtn")
        name = f"{weight.label}.weight"
        if not self.g.has(f"{name}.q"):
            quantized = self.quantized(weight, scheme)
            scales = np.asarray(quantized.scales, np.float32).astype(dtype)
            shape = (weight.columns, weight.rows)
            turned = packing.transposed(quantized.q)
            if scheme.bits == 4:
                self.g.external(f"{name}.q", self.g.data.append(packing.onnx_int4(turned)), "int4", shape)
            else:
                self.g.weight(f"{name}.q", turned)
            self.g.weight(f"{name}.scale", packing.transposed(scales) if blocked else scales.reshape(-1))
        q, scale = Value(f"{name}.q", "int8"), Value(f"{name}.scale", dtype)
        if blocked:
            return self.g.op("DequantizeLinear", q, scale, dtype=dtype, axis=0, block_size=scheme.block)
        return self.g.op("DequantizeLinear", q, scale, dtype=dtype, axis=1)
