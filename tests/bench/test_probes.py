"""Probes against recorded sensor files and a process that really takes memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gog_edge.bench.machine.probes import EnergyMeter, describe_machine, find_rails, rail_watts

# a line of tegrastats on an AGX Orin (layout: NVIDIA Jetson Linux developer guide, "tegrastats utility")


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    rail = tmp_path / "class/hwmon/hwmon3"
    rail.mkdir(parents=True)
    for name, text in {
        "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "2000",
        "in2_label": "VDD_CPU", "in2_input": "5000", "in7_label": "sum of shunt voltages",
    }.items():  # fmt: skip
        (rail / name).write_text(text + "\n")
    return tmp_path


def test_a_rail_needs_voltage_and_current(jetson: Path) -> None:
    rails = find_rails(jetson)
    assert list(rails) == ["rail:VDD_IN"]
    assert rail_watts(rails["rail:VDD_IN"]) == 10.0


def test_rails_are_integrated_over_time(jetson: Path) -> None:
    meter = EnergyMeter(jetson, interval=0.01)
    start = time.monotonic()
    meter.start()
    time.sleep(0.2)
    joules = meter.stop()["rail:VDD_IN"]
    seconds = time.monotonic() - start
    assert 10 * 0.2 <= joules <= 10 * seconds


def test_rapl_counters_may_wrap(tmp_path: Path) -> None:
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("999999999\n")
    (zone / "energy_uj").write_text("999000000\n")
    meter = EnergyMeter(tmp_path)
    meter.start()
    (zone / "energy_uj").write_text("1000000\n")
    assert meter.stop() == {"rapl:package-0": pytest.approx(2.0)}


def test_no_sensor_is_no_figure(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    meter.start()
    assert meter.stop() == {}


def test_a_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert "numpy" in machine["versions"]
