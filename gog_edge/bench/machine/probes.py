"""Readings beside the clock: memory, energy where a sensor exists, clocks, versions. A missing sensor is None."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SYSFS = Path("/sys")
VERSIONED = ("gog-edge", "onnxruntime", "numpy", "tokenizers", "openvino-genai", "onnxruntime-genai", "transformers")


def resident_bytes(pid: int) -> int:
    """Resident set of a process and its children; 0 once it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def own_bytes() -> int:
    """Resident set of this process alone: its children are peers' workers."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def forget_peak() -> bool:
    """Let this process's high-water mark restart from what is resident now; False where the system can't."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most bytes of this process that were ever resident, or were since `forget_peak`; 0 where unknown."""
    match = re.search(r"^VmHWM:\s*(\d+) kB", _read_text(Path("/proc/self/status")) or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


@dataclass
class EnergyMeter:
    """Joules by sensor between `start` and `stop`; empty where the machine has no sensor that may be read.

    RAPL counters (µJ, wrapping) are differenced; INA and tegra rails (µW / mW) are integrated by sampling.
    """

    sysfs: Path = SYSFS
    interval: float = 0.05
    _rapl: dict[str, tuple[Path, int, int]] = field(default_factory=dict)
    _rails: dict[str, list[Path]] = field(default_factory=dict)
    _joules: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the first reading and begin to sample the rails."""
        self._joules.clear()
        self._stop.clear()
        self._rapl = {}
        for zone in sorted((self.sysfs / "class/powercap").glob("intel-rapl:*")):
            counter, limit = _read_int(zone / "energy_uj"), _read_int(zone / "max_energy_range_uj")
            name = _read_text(zone / "name")
            if counter is not None and limit is not None and name is not None:
                self._rapl[f"rapl:{name}"] = (zone / "energy_uj", counter, limit)
        self._rails = find_rails(self.sysfs)
        if self._rails:
            self._thread = threading.Thread(target=self._integrate, name="energy", daemon=True)
            self._thread.start()

    def stop(self) -> dict[str, float]:
        """Joules by sensor since `start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for name, (file, first, limit) in self._rapl.items():
            last = _read_int(file)
            if last is not None:
                # the counter wraps at `limit`
                self._joules[name] = ((last - first) % (limit + 1)) / 1e6
        return dict(self._joules)

    def _integrate(self) -> None:
        then = time.monotonic()
        ended = False
        while not ended:
            ended = self._stop.wait(self.interval)  # what is left of the last interval counts as well
            now = time.monotonic()
            for name, files in self._rails.items():
                watts = rail_watts(files)
                if watts is not None:
                    self._joules[name] = self._joules.get(name, 0.0) + watts * (now - then)
            then = now


def find_rails(sysfs: Path) -> dict[str, list[Path]]:
    """INA3221-style power rails of Jetson boards: label -> [voltage file (mV), current file (mA)].

    Layout: hwmon directories with in{N}_label, in{N}_input and curr{N}_input, as the kernel's ina3221 driver
    documents (Documentation/hwmon/ina3221.rst).
    """
    rails: dict[str, list[Path]] = {}
    for label in sorted((sysfs / "class/hwmon").glob("hwmon*/in*_label")):
        name = _read_text(label)
        number = re.sub(r"\D", "", label.name)
        files = [label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")]
        if name and all(f.is_file() for f in files):
            rails[f"rail:{name}"] = files
    return rails


def rail_watts(files: list[Path]) -> float | None:
    """Volts times amperes of one rail, or None when a file can't be read now."""
    millivolts, milliamperes = _read_int(files[0]), _read_int(files[1])
    if millivolts is None or milliamperes is None:
        return None
    return millivolts * milliamperes / 1e6


def describe_machine(root: Path | None = None) -> dict[str, Any]:
    """What a reader needs to judge a figure: processor, clocks, memory, governor, versions, git state."""
    import psutil

    frequency = psutil.cpu_freq()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "clock_mhz": round(frequency.current) if frequency else None,
        "governor": _read_text(SYSFS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": _power_mode(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": psutil.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: v for name in VERSIONED if (v := _version(name))},
        "git": _git_state(root or Path(__file__).resolve().parents[2]),
    }


def _power_mode() -> str | None:
    """nvpmodel's mode on a Jetson."""
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].removeprefix("NV Power Mode:").strip() if lines else None


def _cpu_model() -> str:
    text = _read_text(Path("/proc/cpuinfo")) or ""
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(root: Path) -> str | None:
    try:
        run = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None
