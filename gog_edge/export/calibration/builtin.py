"""Calibration without a data set: the decoder reads a text that this package brings along (text.txt, written for it).

The text is cut into sequences of equal length, which are read side by side. Nothing of it is about the pictures of a
policy; conversations of one's own (`gog-edge calibrate`) know better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gog_edge.errors import CheckpointError
from gog_edge.export.calibration.eager import Eager
from gog_edge.export.calibration.paired import paired
from gog_edge.export.graph.matrix import TensorSource
from gog_edge.export.quantize.calibration import LayerStats, gram
from gog_edge.families.base import Family, ModelConfig
from gog_edge.families.target import Matrix, Role, Target

F32 = NDArray[np.float32]
TEXT = Path(__file__).with_name("text.txt")
MOST_TOKENS = 4096
_SEQUENCE = 512  # tokens, at most


def read_builtin(tokenizer: Path, source: TensorSource, family: Family, config: ModelConfig) -> BuiltIn | None:
    """The built-in text as the file `tokenizer` cuts it; None where that is missing or knows nothing of it.

    Args:
        source: where weights are read from.
    """
    if not tokenizer.is_file():
        return None
    ids = Tokenizer.from_file(str(tokenizer)).encode(TEXT.read_text("utf-8"), add_special_tokens=False).ids
    known = [i for i in ids if i < config.decoder.spec.vocab]
    return BuiltIn(source, family, config, known) if known else None


class BuiltIn:
    """What the decoder's matrices see of the text. Call it for the statistics of the matrix that is being built."""

    def __init__(self, source: TensorSource, family: Family, config: ModelConfig, ids: Sequence[int]) -> None:
        """`ids`: the text's tokens; those after the first `MOST_TOKENS` are not read.

        Raises:
            ValueError: no tokens.
        """
        if not ids:
            raise ValueError("calibration needs tokens")
        spec = config.decoder.spec
        count = min(len(ids), MOST_TOKENS)
        sequences = -(-count // _SEQUENCE)
        length = count // sequences
        used = np.array(ids[: sequences * length], np.int64)
        frequencies, _ = family.rotary(spec)  # of text, all axes have one position
        angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
        inputs = {
            "inputs_embeds": _rows(source, family.embedding, used)[None],
            "rope_cos": np.cos(angles),
            "rope_sin": np.sin(angles),
            "deepstack": np.zeros((spec.deepstack, 1, 1), np.float32),
            "last_k": np.array([1], np.int64),
        }
        self.tokens = len(used)
        self._eager = Eager(source, inputs, length, self._listen)
        self._known: dict[str, LayerStats] = {}

    def beside(self, build: Callable[[Target], None]) -> Callable[[Target], None]:
        """`build`, which computes what it builds as well.

        It raises CheckpointError where a matrix sees what float32 does not hold.
        """

        def both(target: Target) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # `_listen` says where
                build(paired(self._eager, target))

        return both

    def __call__(self, name: str) -> LayerStats | None:
        """The statistics of weight `name`; None where it is not the one at hand."""
        return self._known.get(name)

    def _listen(self, x: F32, weight: Matrix, role: Role) -> None:
        stats = LayerStats(np.square(x).mean(0), np.abs(x).mean(0), gram(x), len(x))
        if not np.isfinite(stats.hessian).all():
            raise CheckpointError(
                f"{weight.names[0]} sees numbers that float32 does not hold when the decoder reads a text: the "
                "checkpoint is damaged or training diverged (--method mse does not read one)"
            )
        self._known = dict.fromkeys(weight.names, stats)


def _rows(source: TensorSource, table: str, ids: NDArray[np.int64]) -> F32:
    """Rows `ids` of a table, each read once."""
    wanted, places = np.unique(ids, return_inverse=True)
    rows = np.stack([np.asarray(source.read_rows(table, int(i), int(i) + 1), np.float32)[0] for i in wanted])
    return rows[places.reshape(-1)]
