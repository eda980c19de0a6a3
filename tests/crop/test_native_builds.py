"""Every code path of the C++ kernel, whatever this machine's own CPU takes: checked against plain loops, under
sanitizers (frame buffers end exactly at the last pixel), and for Arm under an emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crop.toolchain import compile_check, link_check, need, need_x86, run

SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover")
VNNI = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni")


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text().split()) if info.is_file() else set()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    compiler = need("g++", "clang++")
    return compiler, compile_check(compiler, tmp_path_factory.mktemp("driver") / "driver.o")


@pytest.fixture(scope="module")
def arm_driver(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    compiler, emulator = need("aarch64-linux-gnu-g++"), need("qemu-aarch64-static", "qemu-aarch64")
    return compiler, emulator, compile_check(compiler, tmp_path_factory.mktemp("arm") / "driver.o")


@pytest.mark.parametrize(
    ("name", "needs", "flags"),
    [
        ("portable", (), ("-DGOG_PORTABLE", *SANITIZE)),
        ("avx2", ("avx2",), ("-mavx2", *SANITIZE)),
        ("avx512-vnni", ("avx512_vnni",), ("-O2", *VNNI)),
        ("avx512-vnni", ("avx512_vnni", "avx512vbmi"), (*VNNI, "-mavx512vbmi", *SANITIZE)),
    ],
    ids=["portable", "avx2", "vnni", "vnni-vbmi"],
)
def test_x86_paths_are_exact_and_stay_in_their_buffers(
    name: str, needs: tuple[str, ...], flags: tuple[str, ...], driver: tuple[str, Path], tmp_path: Path
) -> None:
    need_x86()
    if not set(needs) <= cpu_flags():
        pytest.skip(f"this CPU has no {' or '.join(needs)}")
    check = link_check(*driver, tmp_path / "check", *flags)
    assert run(check, "cpu", "120").stdout == f"120 cases equal, {name}\n"


def test_the_machines_own_build_is_exact(driver: tuple[str, Path], tmp_path: Path) -> None:
    check = link_check(*driver, tmp_path / "check", "-O3", "-march=native")
    assert run(check, "cpu", "120").stdout.startswith("120 cases equal")


@pytest.mark.parametrize(
    ("name", "flags"), [("neon-dotprod", ("-march=armv8.2-a+dotprod",)), ("portable", ("-march=armv8-a",))]
)
def test_arm_paths_are_exact(
    name: str, flags: tuple[str, ...], arm_driver: tuple[str, str, Path], tmp_path: Path
) -> None:
    compiler, emulator, driver = arm_driver
    check = link_check(compiler, driver, tmp_path / "check", "-O2", "-static", *flags)
    assert run(emulator, check, "cpu", "40").stdout == f"40 cases equal, {name}\n"


@pytest.mark.slow
def test_threads_do_not_race(tmp_path: Path) -> None:
    """Helpers of the CPU kernel, and the shared memory of a CUDA block with one thread for each of its threads."""
    compiler = need("g++", "clang++")
    driver = compile_check(compiler, tmp_path / "driver.o", "-fsanitize=thread")
    check = link_check(compiler, driver, tmp_path / "check", "-O1", "-fsanitize=thread", "-march=native")
    assert run(check, "cpu", "30").stdout.startswith("30 cases equal")
    assert run(check, "grid", "5").stdout == "5 cases equal, grid\n"
