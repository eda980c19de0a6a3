"""Stored weights against what they stand for: every scheme of both targets, odd shapes, one node at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from gog_edge.errors import CheckpointError
from gog_edge.export.graph import matrix, packing
from gog_edge.export.graph.builder import GraphBuilder
from gog_edge.export.graph.linear import LinearStore, OrtLinear, PortableLinear
from gog_edge.export.graph.matrix import FoldedPatches, Stacked, chunks
from gog_edge.export.graph.weightfile import ALIGNMENT, WeightFile
from gog_edge.export.quantize.fit import for_ort, for_portable
from gog_edge.export.quantize.recipe import Recipe
from gog_edge.export.quantize.scheme import Scheme, dequantize
from gog_edge.export.quantize.weights import quantize
from tests.versions import need_portable

DOMAINS = {"ort": {"": 21, "com.microsoft": 1}, "portable": {"": 24}}
FIT = {"ort": for_ort, "portable": for_portable}
STORES: dict[str, type[LinearStore]] = {"ort": OrtLinear, "portable": PortableLinear}


class Tensors:
    """A checkpoint in memory."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = {name.replace("__", "."): array for name, array in arrays.items()}

    def names(self) -> set[str]:
        return set(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def read(self, name: str, dtype: DTypeLike = np.float32) -> np.ndarray:
        return self.arrays[name].astype(dtype)

    def read_rows(self, name: str, start: int, stop: int, dtype: DTypeLike = np.float32) -> np.ndarray:
        return self.arrays[name][start:stop].astype(dtype)


def recipe(scheme: Scheme) -> Recipe:
    return Recipe("test", *(scheme,) * 7)


def run_linear(
    backend: str, folder: Path, source: Tensors, names: tuple[str, ...], x: np.ndarray, scheme: Scheme
) -> Any:
    """y of one linear layer, built, saved, loaded and run."""
    if backend == "portable":
        need_portable()
    parts = tuple(source.shape(name)[0] for name in names)
    biases = tuple(n.replace("weight", "bias") for n in names if n.replace("weight", "bias") in source.names())
    scheme = scheme if scheme.is_float else FIT[backend](scheme)
    with WeightFile(folder / "w.data") as data:
        g = GraphBuilder("g", data, DOMAINS[backend])
        store = STORES[backend](g, source, recipe(scheme))
        weight = Stacked(source, names, parts, x.shape[1])
        value = g.input("x", "float32", ("n", x.shape[1]))
        y = store.linear(value, weight, biases, "mlp")
        g.output(y, "y", "float32", ("n", sum(parts)))
    g.save(folder / "w.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if backend == "portable":  # as written: ONNX Runtime would fuse DequantizeLinear + MatMul and quantise activations
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(folder / "w.onnx", options, ["CPUExecutionProvider"]).run(None, {"x": x})[0]


SCHEMES = [
    Scheme(32),
    Scheme(16),
    Scheme(8),
    Scheme(8, 32),
    Scheme(8, 64, symmetric=False),
    Scheme(4, 32),
    Scheme(4, 16, symmetric=False),
    Scheme(4, 128),
    Scheme(4, 64, symmetric=False),
]


@pytest.mark.parametrize("backend", ["ort", "portable"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(24, 64), (17, 96), (33, 50), (1, 16)])
def test_a_linear_layer_computes_its_dequantised_weight(
    backend: str, scheme: Scheme, shape: tuple[int, int], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal(shape, np.float32), rng.standard_normal(shape[0], np.float32)
    x = rng.standard_normal((5, shape[1]), np.float32)
    got = run_linear(backend, tmp_path, Tensors(a__weight=weight, a__bias=bias), ("a.weight",), x, scheme)
    exact = x @ weight.T + bias
    if backend == "portable":  # symmetric with positive scales, or 8 bits where blocks do not fill the axis
        bits = 8 if scheme.bits == 4 and shape[1] % scheme.block else scheme.bits
        block = (scheme.block or 128) if bits == 4 else 0
        stored = Scheme(bits, block, positive=True) if bits < 16 else scheme
    else:
        stored = scheme
    want = x @ dequantize(quantize(weight, stored)).T + bias
    # Integer kernels quantise the activations too (8 bits): that error is bounded by half a step of each row.
    integer = backend == "ort" and not scheme.is_float
    step = np.abs(x).max() / 127 if integer else 0
    allowance = step * np.abs(weight).sum(1) * 0.6 + 1e-4 * np.abs(exact).max()
    assert (np.abs(got - want) <= allowance).all()


def test_stacked_parts_are_one_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    parts = {f"{n}__weight": rng.standard_normal((rows, 32), np.float32) for n, rows in zip("qkv", (8, 3, 3))}
    source = Tensors(**parts)
    x = rng.standard_normal((4, 32), np.float32)
    got = run_linear("ort", tmp_path, source, ("q.weight", "k.weight", "v.weight"), x, Scheme(32))
    np.testing.assert_allclose(got, x @ np.concatenate(list(parts.values())).T, atol=1e-5)


@given(st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_chunks_are_the_matrix_in_order(columns: int, rows: list[int], per_chunk: int) -> None:
    rng = np.random.default_rng(3)
    source = Tensors(**{f"p{i}": rng.standard_normal((n, columns), np.float32) for i, n in enumerate(rows)})
    stacked = Stacked(source, tuple(source.arrays), tuple(rows), columns)
    old, matrix.CHUNK_VALUES = matrix.CHUNK_VALUES, per_chunk * columns
    try:
        pieces = list(chunks(stacked))
    finally:
        matrix.CHUNK_VALUES = old
    assert [start for start, _, _ in pieces] == list(range(0, sum(rows), per_chunk))
    whole = np.concatenate(list(source.arrays.values()))
    np.testing.assert_array_equal(np.concatenate([p for _, _, p in pieces]), whole)


def test_wrong_shapes_are_named() -> None:
    source = Tensors(a=np.zeros((4, 6), np.float32))
    with pytest.raises(CheckpointError, match=r"a has shape \[4, 6\], config.json says \[4, 8\]"):
        Stacked(source, ("a",), (4,), 8)
    with pytest.raises(CheckpointError, match=r"a has shape \[4, 6\], config.json says \[5, 6\]"):
        Stacked(source, ("a",), (5,), 6)
    with pytest.raises(CheckpointError, match="no tensor b"):
        Stacked(source, ("a", "b"), (4, 4), 6)


def test_the_temporal_axis_folds_into_one_slice() -> None:
    rng = np.random.default_rng(4)
    kernel = rng.standard_normal((7, 3, 2, 4, 4), np.float32)
    folded = FoldedPatches(Tensors(w=kernel), "w", 7, 2, 4)
    frame = rng.standard_normal((3, 4, 4), np.float32)
    both = np.stack([frame, frame], axis=1)  # a still image: channel, time, y, x
    np.testing.assert_allclose(
        folded.read(0, 7) @ frame.reshape(-1), (kernel * both).sum(axis=(1, 2, 3, 4)), rtol=1e-4, atol=1e-4
    )


@given(st.integers(1, 5), st.integers(1, 9))
def test_nibbles_come_back(rows: int, columns: int) -> None:
    values = np.random.default_rng(5).integers(0, 16, (rows, columns)).astype(np.uint8)
    packed = packing.pack_nibbles(values)
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1)[:, :columns]
    np.testing.assert_array_equal(both, values)


def test_the_weight_file_is_aligned_and_hashed(tmp_path: Path) -> None:
    arrays = [np.arange(n, dtype=np.uint8) for n in (1, 63, 64, 65, 0, 200)]
    with WeightFile(tmp_path / "w") as data:
        blobs = [data.append(array) for array in arrays]
        blobs.append(data.append_all(np.split(np.arange(90, dtype=np.float32), 3)))
    raw = (tmp_path / "w").read_bytes()
    assert all(blob.offset % ALIGNMENT == 0 for blob in blobs)
    for blob, array in zip(blobs, arrays):
        assert raw[blob.offset : blob.offset + blob.length] == array.tobytes()
    last = blobs[-1]
    assert np.frombuffer(raw, np.float32, 90, last.offset).tolist() == list(range(90))
    assert data.digest.sha256 == hashlib.sha256(raw).hexdigest()
    assert data.digest.size == len(raw)


def test_float16_overflow_is_refused(tmp_path: Path) -> None:
    weight = np.full((2, 16), 1e5, np.float32)
    with pytest.raises(CheckpointError, match="beyond the range of float16"):
        run_linear("ort", tmp_path, Tensors(a__weight=weight), ("a.weight",), np.ones((1, 16), np.float32), Scheme(16))
