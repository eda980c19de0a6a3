"""The reader of GGUF files that studies of language models use."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gog_edge.errors import CheckpointError
from studies.gguf import Gguf


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def test_settings_and_blocks_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps, least = rng.integers(0, 16, 32, np.uint8), np.float16(-0.5)
    q41 = np.float16(0.25).tobytes() + least.tobytes() + (steps[:16] | steps[16:] << 4).tobytes()
    whole = rng.integers(-127, 128, 32, np.int8)
    q80 = np.float16(0.125).tobytes() + whole.tobytes()
    plain = rng.standard_normal(3).astype(np.float32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 3, 2)
    head += _string("llama.block_count") + struct.pack("<II", 4, 30)
    head += _string("words") + struct.pack("<IIQ", 9, 8, 2) + _string("a") + _string("ü")
    at = 0
    for name, shape, kind, data in (("a", (32, 1), 3, q41), ("b", (32, 1), 8, q80), ("c", (3,), 0, plain.tobytes())):
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        at += -(-len(data) // 32) * 32
    body = b"".join(data.ljust(-(-len(data) // 32) * 32, b"\0") for data in (q41, q80, plain.tobytes()))
    path = tmp_path / "model.gguf"
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + body)
    file = Gguf(path)
    assert file.settings == {"llama.block_count": 30, "words": ["a", "ü"]} and file.names() == ["a", "b", "c"]
    assert np.array_equal(file.read("a"), (steps * np.float32(0.25) - np.float32(0.5))[None])
    assert np.array_equal(file.read("b"), (whole * np.float32(0.125))[None])
    assert np.array_equal(file.read("c"), plain)


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match="no GGUF file"):
        Gguf(tmp_path / "x")
