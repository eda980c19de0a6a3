"""What this process may use of the machine: CPUs, CPU time and memory, as affinity and control groups (v1, v2) say.

Linux tells all of it in files. Where there are none (Windows, macOS) the machine's own figures hold. A group's limit
binds everything below it, so every group from the process's own up to the mount counts. `GOG_EDGE_THREADS`, which
`--threads` sets, replaces the number of CPUs.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gog_edge.errors import UsageError

THREADS = "GOG_EDGE_THREADS"
_ROOT = Path("/")
_FAST = 0.7  # a CPU of less capacity than this share of the largest is an efficiency core
_NO_LIMIT = 1 << 60  # v1 writes "no limit" as the largest multiple of a page


@dataclass(frozen=True)
class Cpus:
    """CPUs that a process may use.

    Args:
        allowed: logical CPUs that it may run on (affinity).
        fast: those of them that are not efficiency cores; all, where all are alike.
        quota: CPU seconds a second that its control groups grant; infinite without a limit.
        nodes: NUMA nodes that `allowed` lie on, at least 1.
    """

    allowed: int
    fast: int
    quota: float
    nodes: int = 1

    @property
    def threads(self) -> int:
        """Threads of one computation. A quota is rounded up: the odd half of a CPU would be lost. Efficiency cores are
        left out, since the parts of a product end together and would wait for the slowest."""
        return max(1, min(self.fast, math.ceil(min(self.quota, self.allowed))))

    def may_spin(self, threads: int) -> bool:
        """Whether `threads` may wait busily: they have a CPU each, and time that no other one needs."""
        return threads <= self.allowed and (self.quota >= self.allowed or self.quota > threads)


def usable_threads() -> int:
    """How many threads a computation of this process gets.

    Raises:
        UsageError: `GOG_EDGE_THREADS` is no positive number.
    """
    wanted = os.environ.get(THREADS, "").strip()
    if not wanted:
        return cpus().threads
    if not wanted.isdecimal() or not 1 <= int(wanted[:9]) <= 4096:
        raise UsageError(f"{THREADS} is {wanted!r}: a number of threads from 1 to 4096 is needed")
    return int(wanted)


def cpus() -> Cpus:
    """What this process may use. The files are read once; affinity is asked every time."""
    mine = _affinity()
    return _cpus(mine, _ROOT)


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process may still allocate: the machine's, or what its control groups leave if that is less.

    Pages of files that the kernel can drop count as available, as in MemAvailable.
    """
    import psutil

    least: int = psutil.virtual_memory().available
    for group in _groups(root, "memory"):
        limit = _limit(group)
        if limit is not None:
            least = min(least, max(limit - _used(group), 0))
    return least


def total_memory(root: Path = _ROOT) -> int:
    """Bytes that this process could have if nobody else used any: the machine's, or the least limit of its groups."""
    import psutil

    total: int = psutil.virtual_memory().total
    limits = (_limit(group) for group in _groups(root, "memory"))
    return min([total, *(limit for limit in limits if limit is not None)])


def _affinity() -> frozenset[int]:
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0)) or frozenset({0})
    return frozenset(range(os.cpu_count() or 1))


@functools.lru_cache(maxsize=16)
def _cpus(mine: frozenset[int], root: Path) -> Cpus:
    """Of the system whose files lie below `root`."""
    nodes = (_numbers(_text(file)) for file in sorted((root / "sys/devices/system/node").glob("node*/cpulist")))
    quota = min((_quota(group) for group in _groups(root, "cpu")), default=math.inf)
    return Cpus(len(mine), len(_fast(mine, root)), quota, max(1, sum(1 for node in nodes if node & mine)))


def _fast(mine: frozenset[int], root: Path) -> frozenset[int]:
    """Without efficiency cores: Intel's hybrids name them, Arm's have a capacity."""
    performance = _numbers(_text(root / "sys/devices/cpu_core/cpus"))
    if performance & mine:
        return performance & mine
    sizes = {n: _text(root / f"sys/devices/system/cpu/cpu{n}/cpu_capacity") for n in mine}
    known = {n: int(text) for n, text in sizes.items() if text.strip().isdecimal()}
    if len(known) < len(mine):
        return mine
    return frozenset(n for n, size in known.items() if size >= _FAST * max(known.values()))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups whose limits hold for this process, its own first: of v2 and of v1's `controller`.

    /proc/self/cgroup has the path as seen from the hierarchy's top, mountinfo which part of it is mounted where.
    """
    paths: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths.update(dict.fromkeys(names.split(","), path))  # v2 has the empty name
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, kind = mount.split(), system.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        name = "" if kind[0] == "cgroup2" else controller
        if name not in paths or (name and name not in kind[2].split(",")):
            continue
        top = root / _plain(fields[4]).lstrip("/")
        below = _below(paths[name], _plain(fields[3]))
        folder = top / below
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _below(path: str, mounted: str) -> str:
    """`path` relative to the part of the hierarchy that is mounted; empty where it lies outside (a container that sees
    its own group only)."""
    mounted = mounted.rstrip("/")
    inside = path.startswith(mounted + "/") and ".." not in path.split("/")
    return path[len(mounted) :].strip("/") if inside else ""


def _plain(field: str) -> str:
    """A path of mountinfo, where blanks are octal."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), field)


def _quota(group: Path) -> float:
    """CPUs' worth of time of one group, v2 or v1."""
    both = _text(group / "cpu.max").split()
    if not both:
        both = [_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()]
    if len(both) != 2 or not all(number.isdecimal() for number in both) or int(both[1]) == 0:
        return math.inf  # "max", -1, or no such controller
    return int(both[0]) / int(both[1])


def _limit(group: Path) -> int | None:
    """Bytes of memory of one group: v2's `max` and `high` (beyond which it is slowed down), v1's limit."""
    texts = (_text(group / name).strip() for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
    return min((int(text) for text in texts if text.isdecimal() and int(text) < _NO_LIMIT), default=None)


def _used(group: Path) -> int:
    """Bytes that are taken in one group, without file pages that nobody used lately."""
    texts = (_text(group / name).strip() for name in ("memory.current", "memory.usage_in_bytes"))
    taken = next((int(text) for text in texts if text.isdecimal()), 0)
    stat = dict(line.split(None, 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    idle = stat.get("total_inactive_file", stat.get("inactive_file", "0")).strip()
    return max(taken - (int(idle) if idle.isdecimal() else 0), 0)


def _numbers(text: str) -> frozenset[int]:
    """The CPUs of "0-3,8"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _text(file: Path) -> str:
    """Its content; empty where there is none or it can't be read."""
    try:
        return file.read_text("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
