"""Which devices an engine is built for: TensorRT-RTX ahead of time for several, TensorRT for the GPU that is here."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

from gog_edge.engines.tensorrt.plan import Library
from gog_edge.errors import EngineError, UsageError

FIRST_PORTABLE = 80
"""From this compute capability on one plan serves several devices, and 4-bit weights are known. TensorRT-RTX 1.7
refuses them for sm 75 ("the model contains HW-specific datatypes"); NVIDIA advises against portable plans that
include Turing, because they are slower on the others."""

_JETSON = ("87", "101", "110")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def offered(library: Library) -> tuple[str, ...]:
    """Compute capabilities that the library builds for ahead of time; empty: only for the GPU that is here."""
    names = getattr(getattr(library.trt, "ComputeCapability", None), "__members__", {})
    return tuple(sorted((n[2:] for n in names if n.startswith("SM")), key=int))


def plans(
    library: Library, wanted: Sequence[str], *, four_bits: bool = False, single: bool = False
) -> tuple[tuple[str, ...], ...]:
    """The compute capabilities of each plan to be built; ((),) means: the GPU of this machine.

    Args:
        wanted: empty means all that the library offers.
        four_bits: the graphs hold 4-bit weights, which Turing lacks.
        single: one plan for each device instead of a portable one.

    Raises:
        UsageError: one that the library can't build for.
    """
    known = offered(library)
    if not known:
        if wanted:
            raise UsageError(f"{library.runtime} builds for the GPU of this machine only: leave --sm out")
        return ((),)
    unknown = [w for w in wanted if w not in known]
    if unknown:
        hint = " (Jetson: build on the device with --backend tensorrt)" if unknown[0] in _JETSON else ""
        raise UsageError(f"{library.runtime} {library.version} has no sm {unknown[0]}: one of {', '.join(known)}{hint}")
    chosen = sorted(set(wanted), key=int) if wanted else list(known)
    old = [c for c in chosen if int(c) < FIRST_PORTABLE]
    if old and four_bits:
        if wanted:
            raise UsageError(f"sm {old[0]} has no 4-bit weights: export with --precision int8 or fp16 for it")
        old = []
    together = [c for c in chosen if int(c) >= FIRST_PORTABLE]
    alone = [*old, *together] if single else old
    return (*((c,) for c in alone), *([tuple(together)] if together and not single else []))


def this_device(index: int = 0) -> str:
    """The compute capability of the GPU in this machine, as in "87"; asks the driver and needs no other package.

    Raises:
        EngineError: there is no driver or no GPU.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as e:
        raise EngineError(f"there is no NVIDIA driver here ({e}); see gog-edge doctor") from e
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    error = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if error:
        raise EngineError(f"the NVIDIA driver finds no GPU {index} (CUDA error {error}); see gog-edge doctor")
    return f"{major.value}{minor.value}"
