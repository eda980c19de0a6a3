"""TensorRT engines whose leaf calls are the host's, for tests."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import pytest

from gog_edge.bundle import Bundle
from gog_edge.engines.tensorrt import TrtEngine, TrtOptions
from gog_edge.engines.tensorrt.plan import Library, import_library
from gog_edge.manifest import EngineSpec
from tests.engines.host_gpu import HostGpu

REPORT: dict[str, Any] = {"capacity": 256, "chunk": 32, "verify": 4, "image_patches": [16, 64, 1024], "weights": "x"}


def specs(bundle: Bundle, **report: Any) -> tuple[EngineSpec, EngineSpec]:
    """What a build would have written down; the host reads the graphs instead of the plans."""
    names = ("vision", "decoder")
    vision, decoder = (
        EngineSpec(n, bundle.manifest.graphs[n].file, "tensorrt-rtx", "1", "cpu", {**REPORT, **report})  # type: ignore[arg-type]
        for n in names
    )
    return vision, decoder


def host_engine(bundle: Bundle, gpu: HostGpu | None = None, report: Any = None, **options: Any) -> TrtEngine:
    """The engine of `bundle` (backend portable) on the host."""
    options.setdefault("device_crop", False)
    return TrtEngine(bundle, TrtOptions(**options), gpu or HostGpu(), *specs(bundle, **(report or {})))


def with_engines(bundle: Bundle, *engines: tuple[str, str, str]) -> Bundle:
    """The bundle as if these (runtime, version, compute capability) had been built."""
    built = tuple(
        EngineSpec(graph, bundle.manifest.graphs[graph].file, runtime, version, capability, dict(REPORT))  # type: ignore[arg-type]
        for runtime, version, capability in engines
        for graph in ("vision", "decoder")
    )
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=built))


def need_rtx() -> Library:
    """TensorRT-RTX, or skip: allowed only where there are no wheels of it (tests/skips.py)."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("TensorRT-RTX has wheels for x86-64 only")
    pytest.importorskip("tensorrt_rtx")
    return import_library("tensorrt-rtx")
