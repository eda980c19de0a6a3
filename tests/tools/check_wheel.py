"""Build the wheels, install ours with the base dependencies alone in a fresh environment, and use it there.

What must hold: the command line starts, nothing imports torch or onnx, the peers are found once their own wheel is
installed, a bundle that the checkout exported answers a question, and with the extra `export` the demo runs from what
the wheel carries.
Prints one line per check; exits 1 at the first that fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "wheel"
NANO = ROOT / "models" / "gog-nano"


def call(*args: str | Path, **env: str) -> str:
    """Run a command outside of the checkout; its output, or exit with what it printed."""
    done = subprocess.run(
        [str(a) for a in args], cwd=WORK, env={**os.environ, "PYTHONPATH": "", **env}, capture_output=True, text=True
    )
    if done.returncode:
        print(f"FAILED: {' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
        raise SystemExit(1)
    return done.stdout


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    for old in (WORK / "dist").glob("*"):
        old.unlink()
    call(sys.executable, "-m", "build", "--wheel", "--outdir", WORK / "dist", ROOT)
    call(sys.executable, "-m", "build", "--wheel", "--outdir", WORK / "dist", ROOT / "peers")
    (wheel,) = (WORK / "dist").glob("gog_edge-*.whl")
    (peers,) = (WORK / "dist").glob("gog_edge_peers-*.whl")
    print(f"built {wheel.name}, {wheel.stat().st_size / 1024:.0f} KiB")

    venv.create(WORK / "venv", with_pip=True, clear=True)
    python, gog = WORK / "venv/bin/python", WORK / "venv/bin/gog-edge"
    call(python, "-m", "pip", "install", "--quiet", wheel)
    print(call(gog, "--version").strip())
    call(gog, "doctor")
    heavy = "import sys, gog_edge.cli.ask, gog_edge.agent.agent; print({'torch', 'onnx'} & set(sys.modules))"
    if call(python, "-c", heavy).strip() != "set()":
        print("FAILED: the base install imports something heavy")
        raise SystemExit(1)
    print("doctor runs; nothing heavy is imported")

    without = subprocess.run([gog, "bench", "peers", "list"], cwd=WORK, capture_output=True, text=True)
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", peers)
    if without.returncode != 2 or "llama.cpp" not in call(gog, "bench", "peers", "list"):
        print(f"FAILED: peers are not a distribution of their own: {without.stdout}{without.stderr}")
        raise SystemExit(1)
    print("the peers are found where their distribution is installed")

    bundle, index = WORK / "bundle", WORK / "index"
    exporter = Path(sys.executable).with_name("gog-edge")
    # stock operators: the same bundle must run without a compiler
    call(exporter, "export", NANO, "-o", bundle, "--precision", "int8", "--backend", "ort")
    call(gog, "index", "build", index, NANO / "world" / "documents.jsonl", "--bundle", bundle, "--force")
    image = sorted((NANO / "examples").glob("*.jpg"))[0]
    for native in ("0", "1"):
        text = call(
            gog, "ask", image, "Which country's flag is this?", "--bundle", bundle, "--index", index, "--json",
            GOG_EDGE_NO_NATIVE=native,
        )  # fmt: skip
        if '"text"' not in text:
            print(f"FAILED: no answer in {text[:200]}")
            raise SystemExit(1)
    print("a bundle answers, with and without native kernels")

    call(python, "-m", "pip", "install", "--quiet", f"{wheel}[export]")
    if "Luanda" not in call(gog, "demo", GOG_EDGE_LIBRARY=str(WORK / "library")):
        print("FAILED: the demo does not answer")
        raise SystemExit(1)
    print("the demo answers, from the wheel alone")


if __name__ == "__main__":
    main()
