"""Adding TensorRT engines to a bundle that has portable graphs: atomically, without copying its weights."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from gog_edge.bundle import MANIFEST, Bundle, BundleWriter
from gog_edge.engines.tensorrt.plan import RuntimeName, devices
from gog_edge.errors import UsageError
from gog_edge.export.tensorrt.build import BuildOptions, Progress, build_engines
from gog_edge.manifest import EngineSpec


def add_engines(
    bundle: Bundle, out: str | Path, runtime: RuntimeName, options: BuildOptions, progress: Progress | None = None
) -> Bundle:
    """`bundle` with engines for this runtime, written to `out` (which may be the bundle itself).

    Engines that it has of other runtimes, versions or devices stay; those whose devices all get a new one are replaced.
    Files are hard-linked where the file system allows it, so a bundle of many gigabytes costs no second copy.

    Raises:
        EngineError: the library is missing or a build fails; the old bundle stays as it was.
        BundleError: a file differs from what was exported.
        UsageError: a device that can't be built for, or a bundle without portable graphs or with linear attention.
    """
    if bundle.manifest.decoder.linear is not None:
        raise UsageError(f"{bundle.root} has layers of linear attention, which no TensorRT engine is built of yet")
    old = bundle.manifest.engines
    bundle.check(bundle.manifest.files.keys())  # before their hashes are taken over
    with BundleWriter(out) as writer:
        of_engines = {name for engine in old for name in _files(engine)}
        _take(bundle, writer, bundle.manifest.files.keys() - of_engines - {MANIFEST})
        built = build_engines(writer.root, bundle.manifest, runtime, options, progress)
        kept = [engine for engine in old if not any(_replaces(new, engine) for new in built)]
        _take(bundle, writer, {name for engine in kept for name in _files(engine)})
        return writer.commit(dataclasses.replace(bundle.manifest, engines=(*kept, *built)))


def _files(engine: EngineSpec) -> list[str]:
    return [engine.file, *([engine.report["log"]] if "log" in engine.report else [])]


def _replaces(new: EngineSpec, old: EngineSpec) -> bool:
    same = (new.graph, new.runtime, new.version) == (old.graph, old.runtime, old.version)
    return same and set(devices(old)) <= set(devices(new))


def _take(bundle: Bundle, writer: BundleWriter, names: Collection[str]) -> None:
    for name in sorted(names):
        _link(bundle.root / name, writer.root / name)
        writer.record(name, bundle.manifest.files[name])


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # another file system, or one without hard links
        shutil.copy2(source, target)
