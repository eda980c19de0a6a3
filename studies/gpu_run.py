"""Everything that is to be known from a machine with an NVIDIA GPU, in one run that fits fifteen minutes.

    python -m studies.gpu_run FOLDER [--checkpoint models/gog-nano] [--shape qwen3-vl-2b] [--minutes 14]

gog-nano comes first, the larger shape (random weights) while time is left. For each of TensorRT-RTX and ONNX Runtime's
CUDA: `gog-edge export`, `bench self-check` (crop kernel, engine against the CPU's results, CUDA graphs, timing), and
`bench run`. `doctor --json` comes before all. Every step has a report and a log of its own in FOLDER; one that fails or
takes too long costs none of the others. `summary.json` and the table at the end say how each step ended.

What a device without an index needs is carried there in FOLDER: a step whose output is there already is not run again,
so checkpoints and bundles may be made elsewhere (`--until export`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENGINES = {"tensorrt-rtx": ("fp16", "int4"), "cuda": ("fp16",)}  # backend: precisions
SCENARIOS = ("crop", "encode", "prefill", "decode", "agent")
_GRACE = 5.0


@dataclass(frozen=True)
class Step:
    """One command of gog-edge. `makes`: what is there when it has run; `share`: of the time that is left, at most."""

    name: str
    words: tuple[str, ...]
    makes: Path
    share: float


def steps(folder: Path, nano: Path, shape: str) -> Iterator[Step]:
    """What is run, in its order."""
    yield Step("doctor", ("doctor", "--json"), folder / "doctor.log", 0.1)
    yield from _policy(folder, "gog-nano", nano)
    checkpoint = folder / shape
    yield Step(f"{shape}: checkpoint", ("bench", "make-checkpoint", shape, "-o", str(checkpoint)), checkpoint, 0.5)
    yield from _policy(folder, shape, checkpoint)


def _policy(folder: Path, name: str, checkpoint: Path) -> Iterator[Step]:
    for backend, precisions in ENGINES.items():
        for precision in precisions:
            bundle = folder / f"{name}-{backend}-{precision}"
            export = ("export", str(checkpoint), "-o", str(bundle), "--backend", backend, "--precision", precision)
            yield Step(f"{bundle.name}: export", export, bundle, 0.4)
            check, measured = (folder / f"{bundle.name}-{kind}.json" for kind in ("self-check", "bench"))
            words: tuple[str, ...] = ("bench", "self-check", "--bundle", str(bundle), "--out", str(check))
            yield Step(f"{bundle.name}: self-check", words, check, 0.4)
            words = ("bench", "run", *SCENARIOS, "--bundle", str(bundle), "--out", str(measured))
            yield Step(f"{bundle.name}: bench", words, measured, 0.4)


def run(step: Step, log: Path, seconds: float) -> str:
    """How it ended: "done", "there already", "failed (code)", "took too long". Its output goes into `log`."""
    if step.makes.exists():
        return "there already"
    if seconds < _GRACE:
        return "no time left"
    with log.open("wb") as out:
        try:
            command = [sys.executable, "-m", "gog_edge", *step.words]
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return "took too long"
    return "done" if done.returncode == 0 else f"failed ({done.returncode})"


def main() -> int:
    """Run what is not there yet, and say how each step ended."""
    parser = argparse.ArgumentParser("python -m studies.gpu_run", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/gog-nano"))
    parser.add_argument("--shape", default="qwen3-vl-2b")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--until", choices=["export"], help="only what needs no GPU: checkpoints and bundles")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    ended: dict[str, dict[str, object]] = {}
    for step in steps(options.folder, options.checkpoint, options.shape):
        if options.until and not step.name.endswith(("export", "checkpoint")):
            continue
        left = 60 * options.minutes - (time.monotonic() - began)
        started = time.monotonic()
        log = options.folder / f"{step.name.replace(': ', '-')}.log"
        how = run(step, log, max(left * step.share, 0.0))
        ended[step.name] = {"ended": how, "seconds": round(time.monotonic() - started, 1), "log": log.name}
        print(f"{step.name:40} {how:16} {ended[step.name]['seconds']:8.1f} s", flush=True)
        (options.folder / "summary.json").write_text(json.dumps(ended, indent=1), "utf-8")
    return int(any(str(e["ended"]).startswith("failed") for e in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
