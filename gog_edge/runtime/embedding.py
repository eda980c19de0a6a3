"""The token embedding, gathered on the host: rows of a memory-mapped table, so only used rows are ever read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.bundle import Bundle
from gog_edge.errors import BundleError

_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


class TokenEmbedding:
    """[rows, columns] table of the bundle: float32, float16, or int8 with one float32 scale a row. Thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        """Map the file.

        Raises:
            BundleError: its size is not what the manifest says.
        """
        spec = bundle.manifest.embedding
        path = bundle.path(spec.file)
        dtype = np.dtype(_DTYPES[spec.dtype])
        table = spec.rows * spec.columns * dtype.itemsize
        scales = spec.rows * 4 if spec.dtype == "int8" else 0
        size = path.stat().st_size
        if size != table + scales:
            raise BundleError(
                f"{path} has {size} bytes, a {spec.rows}x{spec.columns} {spec.dtype} embedding has {table + scales}; "
                "export the checkpoint again"
            )
        self.rows, self.columns = spec.rows, spec.columns
        self._table: NDArray[Any] = np.memmap(path, dtype, "r", 0, (spec.rows, spec.columns))
        self._scales: NDArray[np.float32] | None = None
        if scales:
            self._scales = np.array(np.memmap(path, np.float32, "r", table, (spec.rows,)))

    def gather(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """[s] ids -> [s, columns] float32.

        Raises:
            BundleError: an id has no row (the tokenizer does not belong to this table).
        """
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.rows):
            raise BundleError(
                f"token {int(ids.max())} has no row in the embedding of {self.rows}: the tokenizer does not fit"
            )
        rows = self._table[ids].astype(np.float32)
        if self._scales is not None:
            rows *= self._scales[ids][:, None]
        return rows
