"""Adding TensorRT engines to a bundle that has `standard` graphs: atomically, without copying its weights."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from gog_edge.bundle import MANIFEST, Bundle, BundleWriter
from gog_edge.export.tensorrt import BuildOptions, Progress, RuntimeName, build_engines


def add_engines(
    bundle: Bundle, out: str | Path, runtime: RuntimeName, options: BuildOptions, progress: Progress | None = None
) -> Bundle:
    """`bundle` with engines for this runtime, written to `out` (which may be the bundle itself).

    Engines that it has of other runtimes, versions or devices stay; equal ones are replaced. Files are hard-linked
    where the file system allows it, so a bundle of many gigabytes costs no second copy.

    Raises:
        EngineError: the library is missing or a build fails; the old bundle stays as it was.
        UsageError: a device that can't be built for, or a bundle without standard graphs.
    """
    with BundleWriter(out) as writer:
        for name, digest in bundle.manifest.files.items():
            if name == MANIFEST:
                continue
            _link(bundle.root / name, writer.root / name)
            writer.record(name, digest)
        built = build_engines(writer.root, bundle.manifest, runtime, options, progress)
        keys = {(e.graph, e.runtime, e.version, e.compute_capability) for e in built}
        kept = [e for e in bundle.manifest.engines if (e.graph, e.runtime, e.version, e.compute_capability) not in keys]
        return writer.commit(dataclasses.replace(bundle.manifest, engines=(*kept, *built)))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # another file system, or one without hard links
        shutil.copy2(source, target)
