"""The built wheel and the fast tests on every Python from 3.10 to 3.13 that this machine has.

    python tests/tools/matrix.py [3.10 3.13 …] [--lowest]

Interpreters come from uv, pyenv or the PATH; one that is missing is named and passed over. Each gets an environment of
its own under .cache/matrix with the wheel and the extras that the fast tests use (no torch). `--lowest` installs the
oldest releases that pyproject.toml admits instead of the newest. Exits 1 if any of them failed or none was found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "matrix"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = "export,grammar,serve,bench,eval"
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "ml_dtypes", "safetensors", "httpx")
FAST = ("-q", "-n", "2", "-m", "not slow and not parity and not tensorrt")
_PIN = re.compile(r"^\s*\"?([A-Za-z0-9_.-]+)(\[[^]]*\])?>=([0-9][\w.]*)")


def interpreter(version: str) -> Path | None:
    """An interpreter of this minor version, or None."""
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            return Path(found.stdout.strip())
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(pyenv.glob(f"{version}.*"), key=lambda p: [int(x) for x in re.findall(r"\d+", p.name)]):
        if (folder / "bin" / "python3").is_file():
            return folder / "bin" / "python3"
    if sysconfig.get_python_version() == version:
        return Path(sys.executable)
    on_path = shutil.which(f"python{version}")
    return Path(on_path) if on_path else None


def lowest(version: str) -> list[str]:
    """name==release of every lower bound of the base install and the extras that a test needs, for this Python."""
    from packaging.requirements import Requirement

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for e in EXTRAS.split(",") for r in project["optional-dependencies"][e])]
    pins = []
    for text in wanted:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"python_version": version}):
            continue
        bounds = [s.version for s in need.specifier if s.operator == ">="]
        pins += [f"{need.name}=={bound}" for bound in bounds]
    return pins


def run(version: str, python: Path, wheels: tuple[Path, Path], pins: list[str]) -> bool:
    """Whether the wheels (ours, the peers') install and their fast tests pass there."""
    folder = WORK / (version + ("-lowest" if pins else ""))
    shutil.rmtree(folder, ignore_errors=True)
    own = folder / "bin" / "python"
    wanted = (f"{wheels[0]}[{EXTRAS}]", wheels[1], *TOOLS, *pins)
    steps = (
        [python, "-m", "venv", folder],
        [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        [own, "-m", "pytest", "-p", "no:cacheprovider", *FAST],
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for step in steps:
        # tests run from a copy of the checkout without the package, so that the installed wheel is what they import
        done = subprocess.run([str(part) for part in step], cwd=WORK / "checkout", env=clean)
        if done.returncode:
            print(f"Python {version}: FAILED at {' '.join(map(str, step[:6]))} …", flush=True)
            return False
    print(f"Python {version}: passed", flush=True)
    return True


def main() -> int:
    """Run the matrix."""
    asked = [a for a in sys.argv[1:] if not a.startswith("-")] or list(VERSIONS)
    shutil.rmtree(WORK / "checkout", ignore_errors=True)
    (WORK / "checkout").mkdir(parents=True)
    folders = ("tests", "peers", "docs", "models", "studies", "examples")
    for name in (*folders, "mkdocs.yml", "pyproject.toml", "README.md", "CHANGELOG.md"):
        if (ROOT / name).exists():
            (WORK / "checkout" / name).symlink_to(ROOT / name)
    shutil.rmtree(WORK / "dist", ignore_errors=True)
    for source in (ROOT, ROOT / "peers"):
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(WORK / "dist"), str(source)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,), (peers,) = (WORK / "dist").glob("gog_edge-*.whl"), (WORK / "dist").glob("gog_edge_peers-*.whl")
    results = {}
    for version in asked:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: not on this machine")
            continue
        results[version] = run(version, python, (wheel, peers), lowest(version) if "--lowest" in sys.argv else [])
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
