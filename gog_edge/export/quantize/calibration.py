"""What calibration knows of a linear layer's inputs, and where it is kept.

The statistics are collected by `parity_calibrate` (torch side) and read by the quantiser; a folder holds one .npy per
distinct input, so that layers that share their input (q, k and v; gate and up) share a file, and only the layer at
hand is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import UsageError
from gog_edge.export.quantize.gptq import Factor, inverse_factor
from gog_edge.native.rotation import rotate

F32 = NDArray[np.float32]
INDEX = "calibration.json"
FORMAT = "gog-edge-calibration-1"
MOST_INPUTS = 4096
"""Of a matrix, that are calibrated together."""


@dataclass(frozen=True)
class LayerStats:
    """Inputs x of one layer over `count` tokens.

    `mean_square`: [in], E[x^2]; `mean_abs`: [in], E[|x|]; `hessian`: [in, in], E[x x^T], or of many inputs the blocks
    on its diagonal, [parts, width, width] (`gram`).
    """

    mean_square: F32
    mean_abs: F32
    hessian: F32
    count: int

    def turned(self, block: int) -> LayerStats:
        """The statistics of the inputs turned by `rotation.rotate`, kept; `mean_abs` as normal values have it."""
        if block not in self._by_block:
            parts = self.hessian if self.hessian.ndim == 3 else self.hessian[None]
            hessian, inputs, width = np.zeros_like(parts), len(self.mean_square), parts.shape[1]
            for i, part in enumerate(parts):
                real = min(width, inputs - i * width)
                hessian[i, :real, :real] = rotate(rotate(part[:real, :real], block).T, block)
            diagonal = np.diagonal(hessian, axis1=1, axis2=2).reshape(-1)[:inputs]
            square = np.maximum(diagonal, 0).astype(np.float32)
            hessian = hessian if self.hessian.ndim == 3 else hessian[0]
            spread = np.sqrt(square * np.float32(2 / np.pi)).astype(np.float32)
            self._by_block[block] = LayerStats(square, spread, hessian, self.count)
        return self._by_block[block]

    @cached_property
    def _by_block(self) -> dict[int, LayerStats]:
        return {}

    @cached_property
    def factor(self) -> list[Factor]:
        """What GPTQ needs of each part; computed once, used for every chunk of rows."""
        parts = self.hessian if self.hessian.ndim == 3 else self.hessian[None]
        inputs, width = len(self.mean_square), parts.shape[1]
        return [inverse_factor(part[: inputs - i * width, : inputs - i * width]) for i, part in enumerate(parts)]


def gram(x: F32) -> F32:
    """E[x x^T] of rows x [n, in] as `LayerStats.hessian`: of more than `MOST_INPUTS` inputs the blocks on the diagonal.

    They are equally wide, a multiple of what is turned together; the last one is filled up with zeros. Errors are then
    compensated within a part only, and sums, memory and time grow with the inputs and not with their square or cube.
    """
    inputs = x.shape[1]
    if inputs <= MOST_INPUTS:
        return (x.T @ x) / np.float32(len(x))
    count = -(-inputs // MOST_INPUTS)
    width = -(-inputs // (64 * count)) * 64
    parts = np.zeros((-(-inputs // width), width, width), np.float32)
    for part, start in zip(parts, range(0, inputs, width)):
        some = np.ascontiguousarray(x[:, start : start + width])
        part[: some.shape[1], : some.shape[1]] = (some.T @ some) / np.float32(len(x))
    return parts


class Calibration:
    """Statistics of a checkpoint by weight name; call it like a function (the exporter's `stats`)."""

    def __init__(self, folder: Path, files: dict[str, str], meta: dict[str, Any]) -> None:
        self.folder, self.files, self.meta = folder, files, meta
        self._last: tuple[str, LayerStats] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Calibration:
        """Raises UsageError if the folder holds no calibration."""
        folder = Path(folder)
        try:
            data = json.loads((folder / INDEX).read_text("utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(data["format"])
            return cls(folder, dict(data["files"]), dict(data["meta"]))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UsageError(f"{folder} holds no calibration that this version reads ({e}): calibrate again") from e

    def check(self, shape: Callable[[str], tuple[int, ...]], decoder: set[str]) -> Calibration:
        """Itself, if it belongs to a checkpoint whose decoder layers have these matrices.

        Raises:
            UsageError: a layer of either has no counterpart, or another width.
        """
        strays = sorted(decoder.symmetric_difference(self.files))
        if strays:
            raise UsageError(f"{self.folder} is the calibration of another checkpoint: they differ in {strays[0]}")
        for name in sorted(decoder):
            known = self(name)
            if known is not None and known.mean_square.shape != shape(name)[1:]:
                raise UsageError(
                    f"{self.folder} is the calibration of another checkpoint: {name} has {shape(name)[1]} inputs,"
                    f" not {len(known.mean_square)}"
                )
        return self

    def __call__(self, name: str) -> LayerStats | None:
        """Statistics of the input of weight `name`, or None if it was not seen."""
        file = self.files.get(name)
        if file is None:
            return None
        if self._last is None or self._last[0] != file:
            with np.load(self.folder / file) as data:
                stats = LayerStats(data["mean_square"], data["mean_abs"], data["hessian"], int(data["count"]))
            self._last = (file, stats)
        return self._last[1]


class CalibrationWriter:
    """Sums over tokens, then files. `add` takes inputs [tokens, in] of one named input."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]] = {}
        self._users: dict[str, str] = {}

    def add(self, key: str, weights: tuple[str, ...], x: F32) -> None:
        """More tokens of the input `key`, which the layers `weights` share."""
        x64 = x.astype(np.float64)
        square, absolute, gram, count = self._sums.get(key) or (
            np.zeros(x.shape[1]),
            np.zeros(x.shape[1]),
            np.zeros((x.shape[1], x.shape[1])),
            0,
        )
        square += np.square(x64).sum(0)
        absolute += np.abs(x64).sum(0)
        gram += (x.T @ x).astype(np.float64)
        self._sums[key] = (square, absolute, gram, count + len(x))
        self._users.update(dict.fromkeys(weights, key))

    def save(self, folder: str | Path, meta: dict[str, Any]) -> Calibration:
        """Write everything into `folder` (made if needed) and open it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {}
        for i, (key, (square, absolute, gram, count)) in enumerate(sorted(self._sums.items())):
            names[key] = f"input-{i:04d}.npz"
            np.savez(
                folder / names[key],
                mean_square=(square / count).astype(np.float32),
                mean_abs=(absolute / count).astype(np.float32),
                hessian=(gram / count).astype(np.float32),
                count=np.int64(count),
            )
        files = {weight: names[key] for weight, key in self._users.items()}
        data = {"format": FORMAT, "files": files, "meta": meta}
        (folder / INDEX).write_text(json.dumps(data, indent=1) + "\n", "utf-8")
        return Calibration.open(folder)
