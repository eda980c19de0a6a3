"""embedding.bin: the token table, gathered on the host, so it never enters a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import UsageError
from gog_edge.export.graph.linear import Progress, ignore_progress
from gog_edge.export.graph.matrix import Stacked, TensorSource, chunks
from gog_edge.export.graph.weightfile import Blob, WeightFile
from gog_edge.export.quantize.scheme import Scheme
from gog_edge.export.quantize.weights import quantize
from gog_edge.manifest import EmbeddingSpec, FileDigest

FILE = "embedding.bin"


def write_embedding(
    source: TensorSource,
    name: str,
    rows: int,
    columns: int,
    scheme: Scheme,
    folder: Path,
    progress: Progress = ignore_progress,
) -> tuple[EmbeddingSpec, FileDigest, Blob]:
    """Write the table row chunk by row chunk; for int8 the rows' float32 scales follow the table.

    Returns the manifest's entry, the file's digest, and where the table lies in it.

    Raises:
        UsageError: a scheme that a host gather can't read: int4, or int8 in blocks.
        CheckpointError: the table is missing or has another shape.
    """
    if scheme.bits == 4 or (scheme.bits == 8 and (scheme.block or not scheme.symmetric)):
        raise UsageError("the embedding is stored as fp32, fp16, or int8 with one symmetric scale a row")
    table = Stacked(source, (name,), (rows,), columns)
    scales: list[NDArray[np.float32]] = []
    with WeightFile(folder / FILE) as data:
        with data.blob() as (out, done):
            for _, _, part in chunks(table):
                if scheme.is_float:
                    out.write(_cast(part, scheme.bits, name))
                else:
                    quantized = quantize(part, scheme)
                    out.write(quantized.q)
                    scales.append(np.asarray(quantized.scales, np.float32).reshape(-1))
                progress(part.size)
        if scales:  # directly after the table: the runtime computes the place
            data.put_unaligned(np.concatenate(scales))
        digest = data.digest
    dtype: Any = {32: "float32", 16: "float16", 8: "int8"}[scheme.bits]
    return EmbeddingSpec(FILE, dtype, rows, columns), digest, done[0]


def _cast(part: NDArray[np.float32], bits: int, name: str) -> NDArray[Any]:
    if bits == 32:
        return part
    if np.abs(part).max() > np.finfo(np.float16).max:
        raise UsageError(f"{name} has values beyond the range of float16; use precision fp32 or int8")
    return part.astype(np.float16)
