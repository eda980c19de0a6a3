"""A sentence encoder (ONNX, as published by sentence-transformers and the like) for choosing passages by meaning."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.allowance import usable_threads
from gog_edge.errors import EngineError

MAX_TOKENS = 256
BATCH = 32
_KNOWN = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class OnnxTextEncoder:
    """Texts to unit vectors: mean of the token features, or the graph's own sentence output. Thread-safe.

    Args:
        model: the .onnx file; `tokenizer.json` is next to it.
        threads: of the session; 0: as many as this process may use.

    Raises:
        EngineError: a file is missing or can't be loaded, or the graph is not a text encoder.
    """

    def __init__(self, model: str | Path, *, threads: int = 0) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        path = Path(model)
        beside = path.with_name("tokenizer.json")
        for needed in (path, beside):
            if not needed.is_file():
                raise EngineError(f"{needed}: no such file; a text encoder is an .onnx with a tokenizer.json beside it")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or usable_threads()
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(beside))
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise EngineError(f"{path}: the text encoder can't be loaded ({' '.join(str(e).split())[:300]})") from e
        self._inputs = [i.name for i in self._session.get_inputs()]
        if "input_ids" not in self._inputs or not set(self._inputs) <= _KNOWN:
            raise EngineError(
                f"{path}: takes {', '.join(self._inputs)}; a text encoder takes {', '.join(sorted(_KNOWN))}"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._path = path
        self._lock = threading.Lock()

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, d] float32, rows of unit length.

        Raises:
            EngineError: the graph failed.
        """
        with self._lock:
            encoded = self._tokenizer.encode_batch(list(texts))
        # Texts of like length together: padding is computed for nothing.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids))
        vectors: dict[int, NDArray[np.float32]] = {}
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            vectors.update(zip(part, self._run([encoded[i].ids for i in part])))
        return np.stack([vectors[i] for i in range(len(texts))])

    def _run(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        longest = max(1, *(len(i) for i in ids)) if ids else 1
        tokens = np.zeros((len(ids), longest), np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = values
            mask[row, : max(len(values), 1)] = 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        try:
            with self._lock:
                output = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        except Exception as e:
            raise EngineError(f"{self._path}: the text encoder failed ({' '.join(str(e).split())[:300]})") from e
        features: NDArray[np.float32] = np.asarray(output, np.float32)
        if features.ndim == 3:
            weights = mask[:, :, None].astype(np.float32)
            features = (features * weights).sum(axis=1) / weights.sum(axis=1)
        norms = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        unit: NDArray[np.float32] = (features / norms).astype(np.float32)
        return unit
