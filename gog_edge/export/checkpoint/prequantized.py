"""Checkpoints that are already quantised: AWQ (gemm) and GPTQ (v1 and v2) are read dequantised, others refused.

Layouts (n inputs, m outputs, g inputs a group; w[m, n] = scale * (q - zero)):
  AWQ gemm   qweight int32 [n, m/8], qzeros int32 [n/g, m/8], scales [n/g, m]; the eight nibbles of a word hold the
             outputs 0 2 4 6 1 3 5 7 (github.com/casper-hansen/AutoAWQ, packing of WQLinear_GEMM).
  GPTQ       qweight int32 [n*b/32, m], packed along the inputs; qzeros int32 [n/g, m*b/32], scales [n/g, m],
             g_idx int32 [n]; version 1 stores zero - 1 (github.com/AutoGPTQ/AutoGPTQ, QuantLinear; GPTQModel for v2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import CheckpointError
from gog_edge.export.checkpoint.shards import ShardSet, Source

_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
_MEND = "export from the original bf16 checkpoint"


@dataclass(frozen=True)
class _Linear:
    """One packed linear layer, by the stored names of its parts."""

    qweight: str
    qzeros: str
    scales: str
    g_idx: str | None
    shape: tuple[int, int]  # [outputs, inputs]


def open_prequantized(source: Source, shards: ShardSet, config: Any, root: Path) -> Source:
    """Put the right dequantiser in front of `source` (a `Renamed` source over `shards`).

    Raises:
        CheckpointError: another method (bitsandbytes, fp8 …), layout or bit width.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"{root}/config.json: quantization_config is not an object")
    method = str(config.get("quant_method", "unknown")).lower()
    stored = getattr(source, "stored", None)
    if stored is None:
        raise TypeError("open_prequantized wants a source with the stored names")
    if method == "awq":
        version = str(config.get("version", "gemm")).lower()
        bits = int(config.get("bits") or config.get("w_bit") or 4)
        if version != "gemm" or bits != 4:
            raise CheckpointError(f"{root}: AWQ {version} with {bits} bits is not read (only gemm, 4 bits); {_MEND}")
        return Dequantised(source, shards, stored, 4, "awq", bool(config.get("zero_point", True)), root)
    if method == "gptq":
        bits = int(config.get("bits", 4))
        layout = str(config.get("checkpoint_format", "gptq")).lower()
        if bits not in (2, 4, 8):
            raise CheckpointError(f"{root}: GPTQ with {bits} bits is not read (only 2, 4 and 8); {_MEND}")
        if layout not in ("gptq", "gptq_v2"):
            raise CheckpointError(f"{root}: GPTQ layout {layout!r} is not read (only gptq and gptq_v2); {_MEND}")
        return Dequantised(source, shards, stored, bits, layout, True, root)
    raise CheckpointError(f"{root} is quantised with {method}, which can't be exported right; {_MEND}")


class Dequantised:
    """A source in which packed linear layers appear as their float `….weight`."""

    def __init__(
        self,
        source: Source,
        shards: ShardSet,
        stored: dict[str, str],
        bits: int,
        layout: str,
        has_zeros: bool,
        root: Path,
    ) -> None:
        self._source, self._shards, self._root = source, shards, root
        self.bits, self.layout, self._has_zeros = bits, layout, has_zeros
        self._per_word = 32 // bits
        self._linears: dict[str, _Linear] = {}
        for name in sorted(stored):
            if name.endswith(".qweight"):
                self._linears[name.removesuffix("qweight") + "weight"] = self._linear(name, stored)
        if not self._linears:
            raise CheckpointError(f"{root}/config.json says {layout}, but no tensor is packed that way; {_MEND}")
        bases = {name.removesuffix(".weight") for name in self._linears}
        parts = {base + part for base in bases for part in _PARTS}
        self._names = (source.names() - parts) | set(self._linears)

    def _linear(self, qweight: str, stored: dict[str, str]) -> _Linear:
        base = qweight.removesuffix(".qweight")
        missing = [p for p in (".qzeros", ".scales") if base + p not in stored]
        if missing:
            raise CheckpointError(f"{self._root} holds {qweight} without {base}{missing[0]}; download it again")
        if base + ".weight" in stored:
            raise CheckpointError(f"{self._root} holds {base} both packed and as floats")
        rows, columns = self._shards.shape(stored[qweight])
        groups, outputs = self._shards.shape(stored[base + ".scales"])
        n, m = (rows, columns * self._per_word) if self.layout == "awq" else (rows * self._per_word, columns)
        zeros = self._shards.shape(stored[base + ".qzeros"])
        fits = outputs == m and groups >= 1 and zeros == (groups, m // self._per_word)
        if not fits or (n % groups and self.layout == "awq"):
            raise CheckpointError(
                f"{self._root}: the parts of {base} do not fit together as {self.layout} with {self.bits} bits; {_MEND}"
            )
        g_idx = stored.get(base + ".g_idx") if self.layout != "awq" else None
        return _Linear(stored[qweight], stored[base + ".qzeros"], stored[base + ".scales"], g_idx, (m, n))

    def names(self) -> set[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        linear = self._linears.get(name)
        return linear.shape if linear else self._source.shape(name)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        linear = self._linears.get(name)
        if linear is None:
            return self._source.rows(name, start, stop)
        q, zeros, scales, groups = self._parts(linear, start, stop)
        return np.ascontiguousarray(((q - zeros[groups]) * scales[groups]).T)

    def _parts(
        self, linear: _Linear, start: int, stop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """q [n, rows], zeros [groups, rows], scales [groups, rows] and the group of each input [n]."""
        per = self._per_word
        first, last = start // per, -(-stop // per)
        cut = slice(start - first * per, stop - first * per)
        n = linear.shape[1]
        packed = self._shards.raw(linear.qweight)
        scales = self._shards.rows(linear.scales, 0, self._shards.shape(linear.scales)[0])[:, start:stop]
        words = self._shards.raw(linear.qzeros)[:, first:last]
        if self.layout == "awq":
            q = unpack(packed[:, first:last], 4)[..., _awq_columns(last - first)][:, cut]
            zeros = unpack(words, 4)[..., _awq_columns(last - first)][:, cut].astype(np.float32)
            if not self._has_zeros:
                zeros = np.full_like(zeros, 8.0)
        else:
            q = unpack(np.ascontiguousarray(packed[:, start:stop].T), self.bits).T
            zeros = unpack(words, self.bits)[:, cut].astype(np.float32)
            if self.layout == "gptq":  # version 1 stores zero - 1; a zero point of 0 wraps to all ones
                zeros = np.mod(zeros + 1, 2**self.bits)
        if linear.g_idx is not None:
            groups = self._shards.raw(linear.g_idx).astype(np.int64)
            if len(groups) != n or groups.min() < 0 or groups.max() >= len(scales):
                raise CheckpointError(f"{self._root}: {linear.g_idx} does not fit its layer; download it again")
        else:
            groups = np.arange(n) // -(-n // len(scales))
        return q.astype(np.float32), zeros, scales, groups


def unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """int32 words [..., k] to their unsigned fields [..., k * 32 / bits], lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words.astype(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return fields.astype(np.uint8).reshape(*words.shape[:-1], -1)


def _awq_columns(words: int) -> NDArray[np.int64]:
    """For each output, the position of its nibble after a plain unpack of `words` words."""
    position = np.empty(8, np.int64)
    position[_AWQ_ORDER] = np.arange(8)  # nibble i holds output _AWQ_ORDER[i]
    columns: NDArray[np.int64] = (np.arange(words)[:, None] * 8 + position).reshape(-1)
    return columns
