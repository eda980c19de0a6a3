"""Exporting, asking, indexing, inspecting need nothing that only POSIX has: tried without it, and read from source."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gog_edge"
NANO = PACKAGE.parent / "models" / "gog-nano"

MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline")
OS = (
    "sched_getaffinity", "getuid", "geteuid", "getgid", "getegid", "preadv", "pread", "pwrite", "pwritev", "fork",
    "forkpty", "killpg", "getpgid", "getpgrp", "setsid", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK",
    "fstatvfs", "sysconf", "uname", "fchown", "chown", "lchown", "mkfifo", "mknod", "sync", "getloadavg",
    "posix_fadvise", "posix_fallocate", "fdatasync", "nice", "setpriority", "memfd_create", "sendfile", "ctermid",
)  # fmt: skip
MMAP = ("MAP_PRIVATE", "MAP_SHARED", "MAP_ANONYMOUS", "MAP_ANON", "PROT_READ", "PROT_WRITE", "MADV_HUGEPAGE",
        "MADV_NOHUGEPAGE", "MADV_DONTNEED", "MADV_WILLNEED", "MADV_SEQUENTIAL", "MADV_RANDOM")  # fmt: skip
SIGNAL = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGQUIT", "alarm", "setitimer", "pause")

# The libraries have builds for Windows: they are loaded first, as they are here.
HIDE = f"""
import sys, os, mmap, signal, ctypes, pathlib, multiprocessing, asyncio, subprocess, tempfile, sqlite3
import numpy, onnx, onnx.numpy_helper, onnxruntime, psutil, tokenizers, PIL.Image, rich.console, click, huggingface_hub
import contextlib, importlib

for name in ("mcp.server.lowlevel", "mcp.server.stdio", "dora", "rerun", "foxglove"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {MODULES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in {MODULES!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
for module, names in ((os, {OS!r}), (mmap, {MMAP!r}), (signal, {SIGNAL!r})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
Library = ctypes.CDLL

def library(name, *args, **rest):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return Library(name, *args, **rest)

ctypes.CDLL = library
read, open_file, open_handle = pathlib.Path.read_text, pathlib.Path.open, os.open

def absent(path):
    if str(path).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", str(path))

def read_text(self, *args, **rest):
    absent(self)
    return read(self, *args, **rest)

def os_open(path, flags, *args, **rest):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_handle(path, flags, *args, **rest)

pathlib.Path.read_text, os.open = read_text, os_open
"""

RUN = """
import json
from gog_edge.cli.main import run
codes = [run(command) for command in json.loads(sys.argv[1])]
print(json.dumps(codes))
"""


def without_posix(script: str, *args: str, cwd: Path) -> str:
    env = {**os.environ, "GOG_EDGE_NO_NATIVE": "1", "GOG_EDGE_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-c", HIDE + script, *args]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_export_ask_and_index_without_posix(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    scene, bundle = str(NANO / "examples" / "scene.jpg"), str(tmp_path / "nano")
    question = "What is the height of this windmill?"
    commands = [
        ["export", str(NANO), "-o", bundle, "--precision", "int8"],
        ["export", str(NANO), "-o", bundle, "--precision", "int8"],  # in the place of the first one
        ["inspect", bundle, "--hashes"],
        ["index", "build", str(tmp_path / "index"), str(NANO / "examples"), "--bundle", bundle],
        ["ask", scene, question, "--bundle", bundle, "--json", "--quiet", "--index", str(tmp_path / "index")],
        ["doctor"],
    ]
    out = without_posix(RUN, json.dumps(commands), cwd=tmp_path)
    assert json.loads(out.splitlines()[-1]) == [0] * len(commands)
    start = out.index('{"question"') if '{"question"' in out else out.index("{\n")
    answer, _ = json.JSONDecoder().raw_decode(out[start:])
    assert answer["text"]
    here = subprocess.run(
        [sys.executable, "-m", "gog_edge", *commands[4]], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "GOG_EDGE_CACHE": str(tmp_path / "other")},
    )  # fmt: skip
    assert json.loads(here.stdout)["text"] == answer["text"]


IMPORTS = """
import importlib, pkgutil, gog_edge
optional = {"tensorrt", "tensorrt_rtx", "cuda", "torch", "transformers", "peft", "starlette", "uvicorn", "matplotlib"}
optional |= {"mcp", "dora", "pyarrow", "rerun", "foxglove"}
for module in pkgutil.walk_packages(gog_edge.__path__, "gog_edge."):
    if module.name.startswith(("gog_edge.export.parity", "gog_edge.__main__", "gog_edge.bench.peers.workers")):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as e:
        if (e.name or "").partition(".")[0] not in optional:
            raise
        print("optional:", module.name, e.name)
print("done")
"""


def test_every_module_can_be_imported_without_posix(tmp_path: Path) -> None:
    """The TensorRT-RTX engine and its builder among them."""
    out = without_posix(IMPORTS, cwd=tmp_path)
    assert out.splitlines()[-1] == "done"
    assert not [line for line in out.splitlines() if "tensorrt" in line.partition(" ")[2]]


# What only POSIX has, where it stands, and why that is never reached elsewhere.
GUARDED = {
    "disk/leftovers.py": {"fcntl", "O_DIRECTORY"},  # without locks, age decides
    "native/build.py": {"fcntl"},  # kernels are not built on Windows
    "export/progress.py": {"resource"},  # psutil instead
    "allowance.py": {"sched_getaffinity"},
    "disk/paths.py": {"getuid"},
    "disk/files.py": {"getuid"},
    "crop/cuda_compile.py": {"getuid"},
    "engines/ort/weights.py": {"preadv", "MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"},  # huge pages are Linux's
    "export/checkpoint/shards.py": {"posix_fadvise"},
    "serve/connection.py": {"resource"},
    "engines/ort/cache.py": {"MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_NOHUGEPAGE", "MADV_DONTNEED"},  # _SMALL_PAGES
}


def posix_names(path: Path) -> Iterator[str]:
    known = {"os": OS, "mmap": MMAP, "signal": SIGNAL}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from {node.attr} & set(known.get(node.value.id, ()))


def test_the_source_names_nothing_else_that_only_posix_has() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): set(posix_names(path))
        for path in PACKAGE.rglob("*.py")
        if "peers/workers" not in path.as_posix()  # programs of their own, for the machines that peers run on
    }
    surplus = {name: names - GUARDED.get(name, set()) for name, names in found.items()}
    assert {name: names for name, names in surplus.items() if names} == {}


def test_peak_memory_without_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil  # for Linux, it imports resource itself

    from gog_edge.export.progress import peak_rss

    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_rss() == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
