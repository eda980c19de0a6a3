"""Export a full-size checkpoint and run the bundle once: time, memory, tokens/s. `full_size.md` shows the results.

    gog-edge bench make-checkpoint qwen2.5-vl-7b -o CHECKPOINT
    python -m studies.full_size CHECKPOINT BUNDLE --out studies/full_size_qwen2.5-vl-7b.json

Export and run are processes of their own, so that each one's peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NANO_DIALECT = Path(__file__).parents[1] / "models" / "gog-nano" / "dialect.toml"
WORDS, TOKENS = 60, 24


def export(checkpoint: Path, bundle: Path, precision: str) -> dict[str, Any]:
    """`gog-edge export` as a user runs it."""
    command = [sys.executable, "-m", "gog_edge", "export", str(checkpoint), "-o", str(bundle), "--precision", precision]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": time.perf_counter() - start,
        "processor_seconds": spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": spent.ru_maxrss * 1024,
        "checkpoint_bytes": _size(checkpoint),
        "bundle_bytes": _size(bundle),
    }


def run(bundle: Path) -> dict[str, Any]:
    """Load, look at 1024x768 with a question, write, look at a crop, then ask through the agent's loop."""
    from gog_edge.agent.agent import Agent
    from gog_edge.agent.loader import bundle_dialect
    from gog_edge.agent.options import RunOptions
    from gog_edge.bench.local_subject import LocalSubject
    from gog_edge.bench.subject import Picture, Words, picture
    from gog_edge.image.frame import Frame

    subject = LocalSubject(bundle)
    facts: dict[str, Any] = {"load_seconds": subject.load()}
    scene, crop = picture(1024, 768, seed=5), picture(448, 336, seed=6)
    for number, (name, shown) in enumerate((("scene", scene), ("crop", crop)), 1):
        turn = subject.turn([Picture(shown.pixels), Words(WORDS, number)], TOKENS)
        stages = {stage: round(seconds, 3) for stage, seconds in turn.stages.items()}
        facts[name] = {"new_tokens": turn.new_tokens, "written": turn.generated, "seconds": turn.total, **stages}
    model = subject.model
    options = RunOptions(prefix_cache=False, turn_tokens=TOKENS, max_turns=1, grammar="off")
    agent = Agent(model, bundle_dialect(model.bundle, NANO_DIALECT), [], options, owned=[])
    start = time.perf_counter()
    answer = agent.ask(Frame.open(scene.pixels), "What is the capital of this country?")
    facts["ask"] = {
        "seconds": time.perf_counter() - start,
        "turns": len(answer.steps),
        "stop": answer.stop.value,
        "prompt_tokens": answer.usage.prompt_tokens,
        "written": answer.usage.generated_tokens,
    }
    facts["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts["cores"] = len(os.sched_getaffinity(0))
    agent.close()
    return facts


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run-only", action="store_true", help="the bundle is there already")
    given = parser.parse_args()
    if given.run_only:
        print(json.dumps(run(given.bundle)))
        return
    report = {"checkpoint": given.checkpoint.name, "precision": given.precision}
    report["export"] = export(given.checkpoint, given.bundle, given.precision)
    print(json.dumps(report), flush=True)
    command = [sys.executable, "-m", "studies.full_size", str(given.checkpoint), str(given.bundle), "--run-only"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report["run"] = json.loads(done.stdout.splitlines()[-1])
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
