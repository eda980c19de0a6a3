"""Which C++ compiler this machine has, and what identifies it and the CPU in a cache key.

Nothing here starts a process unless it is asked for a version string: a warm start of the runtime must not
pay for one, so the compiler is identified by its resolved path, size and modification time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_CANDIDATES = ("g++", "clang++", "c++")
_SEARCHED = ("CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX")
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "cpu implementer", "cpu part", "features")


@dataclass(frozen=True)
class Toolchain:
    """A compiler that was found.  `identity` changes when the compiler does, or what else it reads.

    `path` is what is executed, with `arguments`: CXX may be "ccache g++".
    """

    path: Path
    identity: str
    arguments: tuple[str, ...] = ()

    def version(self) -> str:
        """First line of `--version` (starts a process)."""
        command = [str(self.path), *self.arguments, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        lines = done.stdout.splitlines()
        return lines[0] if lines else f"{self.path.name} (version unknown)"


def find_toolchain() -> Toolchain | None:
    """The compiler named by $CXX, else the first of g++, clang++, c++ on PATH; None when there is none."""
    wanted = os.environ.get("CXX", "").strip()
    for words in ([wanted], _words(wanted), *([name] for name in _CANDIDATES)):
        found = shutil.which(words[0]) if words and words[0] else None
        if found is not None:
            return Toolchain(Path(found), _identity(words), tuple(words[1:]))
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an open quote
        return []


def _identity(words: list[str]) -> str:
    """Of every word of the command: the program behind it, if it is one; and where compilers look by environment."""
    facts = [f"{name}={os.environ[name]}" for name in _SEARCHED if os.environ.get(name)]
    for word in words:
        found = shutil.which(word)
        if found is None:
            facts.append(word)
        else:
            real = Path(os.path.realpath(found))
            stat = real.stat()
            facts.append(f"{real}:{stat.st_size}:{stat.st_mtime_ns}")
    return "\n".join(facts)


@functools.lru_cache(maxsize=1)
def cpu_identity() -> str:
    """Digest of what `-march=native` depends on: a cache shared by two machines must not mix their code.

    Linux: vendor, model and feature flags of the first core in /proc/cpuinfo; elsewhere what `platform` has.
    """
    facts = [sys.platform, platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        first_core = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
        for line in first_core.splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in _CPU_FIELDS:
                facts.append(f"{key.strip().lower()}={value.strip()}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
