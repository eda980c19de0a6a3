"""Build, check and register the operator library with an ONNX Runtime session."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gog_edge.native.build import load_status
from gog_edge.native.contract import VERSION
from gog_edge.native.packing import pack_w8
from gog_edge.native.probe import gemm_model, probe_model

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger("gog_edge.native")

SOURCE = Path(__file__).with_name("csrc") / "ops.cpp"
FLAGS = ("-Wno-psabi",)
FALLBACK = "graphs with native operators can not run here"


def register(options: onnxruntime.SessionOptions) -> str | None:
    """Make the `ai.gog_edge` operators known to sessions made with `options`.

    Returns None when they are ready, else the reason in one line (no compiler, GOG_EDGE_NO_NATIVE, an
    incompatible ONNX Runtime, a self-test that failed): the caller then uses a graph of stock operators.
    """
    path, reason = _checked_library()
    if path is not None:
        options.register_custom_ops_library(path)
    return reason


def available() -> str | None:
    """None when the operators can be used on this machine, else the reason (see `register`)."""
    return _checked_library()[1]


def instruction_set() -> str | None:
    """What the library was compiled for, such as "avx512-vnni-bf16"; None when it is not available."""
    status = load_status("ops", [SOURCE], flags=FLAGS, fallback=FALLBACK, tell=False)
    if status.library is None:
        return None
    answer: bytes = status.library.function("gog_ops_isa", ctypes.c_char_p)()
    return answer.decode()


@functools.lru_cache(maxsize=1)
def gemm_rows_independent() -> bool:
    """Whether ONNX Runtime's float32 Gemm gives a row the same bits however many run with it, tried on this CPU.

    Float matrices of a native graph are its. On x86 with AVX-512 it does (1 to 40 rows against 64, fourteen shapes),
    but that is nobody's promise.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # sines instead of numpy.random, which takes longer to load than all of this
    x = np.sin(np.arange(17 * 600) * 1.7).astype(np.float32).reshape(17, 600)
    cuts = ([1] * 17, [2, 3, 5, 7], [16, 1])
    parts = [np.split(x, np.cumsum(cut)[:-1]) for cut in cuts]
    for columns in (72, 1):  # a shared expert's gate has one
        model = gemm_model(np.sin(np.arange(columns * 600) * 2.3 + columns).astype(np.float32).reshape(columns, 600))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        whole = session.run(None, {"x": x})[0]
        for cut in parts:
            if not np.array_equal(np.concatenate([session.run(None, {"x": p})[0] for p in cut]), whole):
                return False
    return True


@functools.lru_cache(maxsize=1)
def _checked_library() -> tuple[str | None, str | None]:
    """(path of the library, None) or (None, reason); built, loaded and tried once per process."""
    status = load_status("ops", [SOURCE], flags=FLAGS, fallback=FALLBACK, tell=False)
    if status.library is None:
        return None, status.reason
    version = status.library.function("gog_ops_version", ctypes.c_int)()
    if version != VERSION:
        return (
            None,
            f"the operator library speaks version {version}, this package {VERSION}; install gog-edge again",
        )
    reason = _self_test(str(status.library.path))
    if reason is not None:
        log.warning("ops: %s", reason)
        return None, reason
    return str(status.library.path), None


def _self_test(path: str) -> str | None:
    """Run one LinearW8 node through a session and compare with numpy: a wrong ABI or kernel fails closed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # numpy.random is not asked: loading it would be a fifth of the time to the first token
    weight = (np.arange(40 * 72) * 89 % 255 - 127).astype(np.int8).reshape(40, 72)
    scales = (1 + np.arange(40) * 13 % 40).astype(np.float32) / np.float32(40)
    packed = pack_w8(weight, scales)
    x = np.sin(np.arange(3 * 72) * 1.7).astype(np.float32).reshape(3, 72)
    try:
        options.register_custom_ops_library(path)
        session = onnxruntime.InferenceSession(probe_model(40), options, providers=["CPUExecutionProvider"])
        got = session.run(None, {"x": x, "weight": packed.weight, "scales": packed.scales})[0]
    except Exception as error:  # noqa: BLE001  # ONNX Runtime raises its own unrelated types; all mean "no"
        return f"ONNX Runtime {onnxruntime.__version__} refuses the native operators ({error}): {FALLBACK}"
    step = np.abs(x).max(axis=1, keepdims=True) / 127  # a row is quantised to int8 with one scale
    want = (np.rint(x / step) * step) @ (weight * scales[:, None]).T
    if not np.allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max())):
        return f"the native operators compute wrong results on this machine: {FALLBACK}; report it"
    return None
