"""The export scenario: a checkpoint to a bundle, as a person runs it, in a process of its own each time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gog_edge.bench.result import Cell
from gog_edge.bench.statistics import seconds_of
from gog_edge.bundle import Bundle
from gog_edge.errors import BenchError

PRECISIONS = ("int8", "int4")


def export_cells(checkpoint: Path, repeats: int, precisions: Sequence[str] = PRECISIONS) -> Iterator[Cell]:
    """Seconds from the command to its end, imports included; the process's greatest memory; the bundle's size.

    Args:
        checkpoint: a Hugging Face folder.
        repeats: exports for each of `precisions`; every bundle is removed before the next one is written.

    Raises:
        BenchError: an export failed; with its own words.
    """
    for precision in precisions:
        seconds, peaks, sizes = [], [], []
        with tempfile.TemporaryDirectory(prefix="gog-edge-bench-") as folder:
            out = Path(folder) / "bundle"
            for _ in range(repeats):
                seconds.append(seconds_of(lambda: _export(checkpoint, out, precision)))  # noqa: B023 - runs at once
                bundle = Bundle.open(out)
                peaks.append(float(bundle.manifest.provenance["peak_rss_bytes"]))
                sizes.append(float(sum(f.stat().st_size for f in out.iterdir())))
                shutil.rmtree(out)
        yield Cell("export", "gog-edge", f"to {precision}", "s", tuple(seconds))
        yield Cell("export", "gog-edge", f"to {precision}: peak memory", "B", tuple(peaks))
        yield Cell("export", "gog-edge", f"to {precision}: bundle", "B", tuple(sizes))


def _export(checkpoint: Path, out: Path, precision: str) -> None:
    command = [sys.executable, "-m", "gog_edge", "export", str(checkpoint), "-o", str(out), "--precision", precision]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"export to {precision}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
