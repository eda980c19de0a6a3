"""What a process may use, by made-up /proc and /sys: control groups, affinity, slow cores; and who heeds it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner

from gog_edge import allowance
from gog_edge.allowance import Cpus, available_memory, total_memory, usable_threads
from gog_edge.cli.common.options import threads_option
from gog_edge.cli.main import COMMANDS, cli
from gog_edge.engines.ort import options as ort_options
from gog_edge.engines.ort import weights
from gog_edge.engines.ort.options import OrtOptions, session_options, settled
from gog_edge.errors import UsageError
from gog_edge.evaluation.runner import default_threads

MIB = 1 << 20
EIGHT = frozenset(range(8))
V2 = "30 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 1 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 1 0:30 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", "ascii")
    return root


def v2(root: Path, group: str, files: dict[str, object]) -> Path:
    """Version 2, with `files` below /sys/fs/cgroup."""
    top = {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": V2}
    return write(root, {**top, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}})


@pytest.mark.parametrize(
    ("files", "quota", "threads"),
    [
        ({}, math.inf, 8),
        ({"a/b/cpu.max": "max 100000"}, math.inf, 8),
        ({"a/b/cpu.max": "50000 100000"}, 0.5, 1),
        ({"a/b/cpu.max": "150000 100000"}, 1.5, 2),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "300000 100000"}, 2.0, 2),  # what is above binds as well
        ({"a/b/cpu.max": "rubbish"}, math.inf, 8),
        ({"a/b/cpu.max": "1 0"}, math.inf, 8),
    ],
)
def test_the_quota_of_version_2(tmp_path: Path, files: dict[str, object], quota: float, threads: int) -> None:
    found = allowance._cpus(EIGHT, v2(tmp_path, "/a/b", files))
    assert (found.quota, found.threads) == (quota, threads)


def test_limits_of_version_1_in_a_container(tmp_path: Path) -> None:
    """Its memory group is mounted as the top of the hierarchy, its CPU group lies below another one."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 320 * MIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 200 * MIB,
            "sys/fs/cgroup/memory/memory.stat": f"total_rss {80 * MIB}\ntotal_inactive_file {100 * MIB}",
        },
    )
    assert allowance._cpus(EIGHT, tmp_path).quota == 2.5
    assert (available_memory(tmp_path), total_memory(tmp_path)) == (220 * MIB, 320 * MIB)
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712})  # how it writes "none"
    assert total_memory(tmp_path) == psutil.virtual_memory().total


def test_memory_of_version_2(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "a/memory.max": 512 * MIB,
        "a/memory.current": 500 * MIB,
        "a/memory.stat": f"anon 1\ninactive_file {90 * MIB}",
        "a/b/memory.max": "max",
        "a/b/memory.high": 1024 * MIB,
        "a/b/memory.current": 100 * MIB,
    }
    root = v2(tmp_path, "/a/b", files)
    assert (available_memory(root), total_memory(root)) == (102 * MIB, 512 * MIB)
    write(root, {"sys/fs/cgroup/a/memory.current": 700 * MIB})  # over its limit: nothing is left, not less
    assert available_memory(root) == 0


def test_without_any_file_the_machine_counts(tmp_path: Path) -> None:
    assert allowance._cpus(EIGHT, tmp_path) == Cpus(8, 8, math.inf, 1)
    assert total_memory(tmp_path) == psutil.virtual_memory().total
    assert 0 < available_memory(tmp_path) <= total_memory(tmp_path)


def test_a_group_outside_of_what_is_mounted(tmp_path: Path) -> None:
    """A path that climbs out, as a process moved from another namespace has it: the mount's top is what it can see."""
    root = v2(tmp_path, "/../../elsewhere", {"cpu.max": "100000 100000"})
    assert allowance._cpus(EIGHT, root).quota == 1.0


def test_slow_cores_are_left_out(tmp_path: Path) -> None:
    intel = write(tmp_path / "intel", {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    assert allowance._cpus(EIGHT, intel).threads == 4
    assert allowance._cpus(frozenset({4, 5}), intel).threads == 2  # it may run on slow ones only
    sizes = [414] * 4 + [1024] * 4  # RK3588
    arm = write(tmp_path / "arm", {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": s for n, s in enumerate(sizes)})
    assert allowance._cpus(EIGHT, arm).threads == 4
    alike = write(tmp_path / "alike", {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": 1024 for n in range(8)})
    assert allowance._cpus(EIGHT, alike).threads == 8


def test_nodes_of_memory(tmp_path: Path) -> None:
    nodes = {"node0": "0-3", "node1": "4-7"}
    root = write(tmp_path, {f"sys/devices/system/node/{name}/cpulist": text for name, text in nodes.items()})
    assert allowance._cpus(EIGHT, root).nodes == 2
    assert allowance._cpus(frozenset({1, 2}), root).nodes == 1


@pytest.mark.parametrize(
    ("may", "threads", "spins"),
    [
        (Cpus(2, 2, math.inf), 2, True),
        (Cpus(2, 2, math.inf), 3, False),  # more threads than CPUs
        (Cpus(2, 2, 0.5), 1, False),
        (Cpus(2, 2, 2.0), 2, True),  # a quota of all that there is
        (Cpus(8, 8, 2.0), 2, False),  # with the thread that asks, they would be throttled
        (Cpus(8, 8, 4.0), 2, True),
    ],
)
def test_spinning(monkeypatch: pytest.MonkeyPatch, may: Cpus, threads: int, spins: bool) -> None:
    monkeypatch.setattr(ort_options, "cpus", lambda: may)
    given = session_options(OrtOptions(threads=threads))
    assert given.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spins))
    assert settled(OrtOptions(threads=threads, spin=True)).spin is True  # the user's word


def test_huge_pages_need_memory_of_the_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """204 MiB of weights in 320 MiB, of which 80 are taken: the machine has plenty, the group has not."""
    used = {"memory.max": 320 * MIB, "memory.current": 80 * MIB}
    root = v2(tmp_path, "/", dict(used))
    graph = weights.ExternalTensor("w", 2, (1,), "w.data", 0, 1)
    switch = tmp_path / "switch"
    switch.write_text("always [madvise] never", "ascii")
    with (tmp_path / "w.data").open("wb") as f:
        f.truncate(204 * MIB)
    (tmp_path / "decoder.onnx").touch()
    monkeypatch.setattr(weights, "external_tensors", lambda model: [graph])
    monkeypatch.setattr(weights, "_SWITCH", switch)
    monkeypatch.setattr(weights, "available_memory", lambda: available_memory(root))
    if hasattr(weights.mmap, "MADV_HUGEPAGE"):
        assert str(weights.why_mapped(tmp_path / "decoder.onnx")).startswith("240 MiB of memory are available")
        write(root, {"sys/fs/cgroup/memory.max": 640 * MIB})
        if psutil.virtual_memory().available > 640 * MIB:
            assert weights.why_mapped(tmp_path / "decoder.onnx") is None


def test_the_number_of_threads_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allowance.THREADS, "3")
    assert usable_threads() == settled(OrtOptions()).threads == 3
    assert default_threads(3) == 1
    monkeypatch.setenv(allowance.THREADS, " ")
    assert usable_threads() == allowance.cpus().threads
    for wrong in ("0", "-1", "many", "4097", "²"):
        monkeypatch.setenv(allowance.THREADS, wrong)
        with pytest.raises(UsageError, match="from 1 to 4096"):
            usable_threads()


def test_the_option_holds_for_its_command_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv(allowance.THREADS, raising=False)

    @click.command()
    @threads_option
    def command() -> None:
        click.echo(f"{usable_threads()} {os.environ['OMP_NUM_THREADS']}")

    assert CliRunner().invoke(command, ["--threads", "5"]).output == "5 5\n"
    assert allowance.THREADS not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert CliRunner().invoke(command, ["--threads", "0"]).output == f"{allowance.cpus().threads} 7\n"


COMPUTING = [
    ("ask",), ("watch",), ("export",), ("calibrate",), ("serve",), ("eval",), ("bench", "run"), ("bench", "self-check"),
    ("index", "build"), ("index", "add"), ("index", "search"), ("index", "recall"),
]  # fmt: skip


@pytest.mark.parametrize("path", COMPUTING)
def test_every_command_that_computes_has_the_option(path: tuple[str, ...]) -> None:
    assert path[0] in COMMANDS
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert "--threads" in result.output
