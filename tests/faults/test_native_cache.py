"""Compiled kernels in the cache: what is damaged, somebody else's or left by a kill is not loaded, and not the end."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from gog_edge.crop import cuda_compile
from gog_edge.disk import leftovers
from gog_edge.disk.files import read_sealed, write_sealed
from gog_edge.engines.tensorrt import plan
from gog_edge.native import build
from gog_edge.native.toolchain import find_toolchain
from tests.faults import damage

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="native code is built on Linux and macOS only"),
    pytest.mark.skipif(find_toolchain() is None, reason="no C++ compiler on this machine"),
]
SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GOG_EDGE_NO_NATIVE", raising=False)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    (tmp_path / "answer.cpp").write_text(SOURCE)
    return tmp_path / "answer.cpp"


def load(source: Path, monkeypatch: pytest.MonkeyPatch) -> build.NativeStatus:
    """As in a process that starts now."""
    monkeypatch.setattr(build, "_statuses", {})
    leftovers._swept.clear()
    return build.load_status("answer", [source])


def answer(status: build.NativeStatus) -> int:
    assert status.library is not None, status.reason
    return int(status.library.function("answer", ctypes.c_int)())


def test_damaged_libraries_are_built_anew(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child each: what is loaded once stays mapped."""
    library = load(source, monkeypatch).library
    assert library is not None
    good = library.path.read_bytes()
    seal = library.path.with_name(library.path.name + ".sha256")
    for what, bad in [*damage.damages(good, 12), ("nothing", b""), ("all zeros", bytes(len(good)))]:
        fresh = library.path.with_name("fresh")
        fresh.write_bytes(bad)
        fresh.replace(library.path)  # what this process has loaded stays as it was
        child = os.fork()
        if child == 0:
            status = load(source, monkeypatch)
            os._exit(0 if status.built_s is not None and answer(status) == 42 else 1)
        assert os.waitpid(child, 0)[1] == 0, what
    seal.unlink()
    assert load(source, monkeypatch).built_s is not None
    assert load(source, monkeypatch).built_s is None


@pytest.mark.parametrize("which", ["library", "seal", "folder"])
def test_what_others_can_have_written_is_not_loaded(source: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    library = load(source, monkeypatch).library
    assert library is not None
    seal = library.path.with_name(library.path.name + ".sha256")
    path = {"library": library.path, "seal": seal, "folder": library.path.parent}[which]
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        path.chmod(0o666 | path.stat().st_mode)
    status = load(source, monkeypatch)
    assert status.built_s is not None and answer(status) == 42


@pytest.mark.parametrize("place", ["file", "loop", "read-only"])
def test_a_cache_that_cannot_be_used_costs_compiling_and_no_more(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    where = {"file": tmp_path / "file", "loop": tmp_path / "loop", "read-only": Path("/proc/gog")}[place]
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("GOG_EDGE_CACHE", str(where))
    status = load(source, monkeypatch)
    assert answer(status) == 42 and status.built_s is not None
    assert "compiled for this process alone" in caplog.text


def test_a_compiler_that_is_killed_or_out_of_space_is_asked_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_toolchain()
    assert real is not None
    passing = [
        "g++: fatal error: Killed signal terminated program cc1plus",
        "/usr/bin/ld: final link failed: No space left on device",
        "answer.cpp:1:1: error: error writing to /tmp/x.s: No space left on device",
        "answer.cpp:9:1: fatal error: vector: No such file or directory",
        "cc1plus: out of memory allocating 65536 bytes",
        "virtual memory exhausted: Cannot allocate memory",
    ]
    compiler = tmp_path / "my-g++"
    for line in passing:
        compiler.write_text(f"#!/bin/sh\necho '{line}' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        status = load(source, monkeypatch)
        assert status.library is None and status.reason is not None and "failed on answer.cpp" in status.reason, line
        assert not list((tmp_path / "cache").rglob("*.failed")), line
        monkeypatch.setenv("CXX", str(real.path))
        assert answer(load(source, monkeypatch)) == 42
        for kept in (tmp_path / "cache" / "native").glob("*.so"):
            kept.unlink()


def test_killed_at_any_step_the_next_start_has_its_library_and_no_leftovers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "native"
    steps = 0
    for step in damage.deaths(lambda: answer(load(source, monkeypatch))):
        child = os.fork()
        if child == 0:
            os._exit(0 if answer(load(source, monkeypatch)) == 42 else 1)
        assert os.waitpid(child, 0)[1] == 0, step
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], step
        for kept in folder.iterdir():
            kept.unlink()
        steps += 1
    assert steps > 5


def test_cxx_may_be_a_command_and_is_part_of_the_key(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_toolchain()
    assert real is not None
    wrapper = tmp_path / "cc ache"
    wrapper.write_text('#!/bin/sh\necho "$@" >> "$0.log"\nexec "$@"\n')
    wrapper.chmod(0o755)
    keys = set()
    for command in (str(real.path), f"'{wrapper}' {real.path}", f"'{wrapper}' {real.path} -O1"):
        monkeypatch.setenv("CXX", command)
        status = load(source, monkeypatch)
        assert answer(status) == 42 and status.library is not None
        keys.add(status.library.path.name)
    assert len(keys) == 3
    assert (tmp_path / "cc ache.log").read_text().count(str(real.path)) == 2
    monkeypatch.setenv("CXX", str(real.path))
    monkeypatch.setenv("CPATH", str(tmp_path))  # where headers are looked for
    assert load(source, monkeypatch).built_s is not None


def test_a_compiler_whose_folder_has_a_space_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    found = find_toolchain()
    assert found is not None and (found.path, found.arguments) == (compiler, ())
    monkeypatch.setenv("CXX", "'g++")  # an open quote names nothing
    assert find_toolchain() is not None


def test_sealed_bytes_are_those_that_were_written_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    assert read_sealed(path) is None
    data = bytes(range(256)) * 40
    write_sealed(path, data)
    assert read_sealed(path) == data
    whole = path.read_bytes()
    for what, bad in damage.damages(whole, 40):
        path.write_bytes(bad)
        assert read_sealed(path) is None, what
    write_sealed(path, data)
    path.chmod(0o666)
    assert read_sealed(path) is None


def test_kernels_for_gpus_are_read_only_if_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compile, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(cuda_compile, "compile_crop", lambda arch: (b"machine code", ""))
    assert cuda_compile.crop_cubin("sm_87", tmp_path / "cuda") == b"machine code"
    (kept,) = (tmp_path / "cuda").iterdir()
    monkeypatch.setattr(cuda_compile, "compile_crop", lambda arch: (b"compiled anew", ""))
    assert cuda_compile.crop_cubin("sm_87", tmp_path / "cuda") == b"machine code"
    kept.write_bytes(kept.read_bytes()[:-4] + bytes(4))
    assert cuda_compile.crop_cubin("sm_87", tmp_path / "cuda") == b"compiled anew"
    (tmp_path / "file").write_text("")
    assert cuda_compile.crop_cubin("sm_87", tmp_path / "file") == b"compiled anew"
    plan._keep(tmp_path / "file" / "engine", b"kernels")  # one line in the log
    assert plan._kept(tmp_path / "file" / "engine") is None
