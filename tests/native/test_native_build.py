"""The build-and-cache helper: builds once, says why not, never loads what it should not."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pytest

from gog_edge.disk.files import seal
from gog_edge.native import build
from gog_edge.native.toolchain import cpu_identity, find_toolchain

SOURCE = """#include "answer.h"
extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }
"""

needs_compiler = pytest.mark.skipif(
    find_toolchain() is None or sys.platform == "win32", reason="no C++ compiler on this machine"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny library with a header, an empty cache, and no memory of earlier loads."""
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GOG_EDGE_NO_NATIVE", raising=False)
    monkeypatch.setattr(build, "_statuses", {})
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    (folder / "answer.cpp").write_text(SOURCE)
    return folder / "answer.cpp"


def _answer(status: build.NativeStatus) -> int:
    assert status.library is not None, status.reason
    return int(status.library.function("answer", ctypes.c_int)())


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_statuses", {})


@needs_compiler
def test_builds_once_and_uses_the_cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.load_status("answer", [source])
    assert _answer(first) == 42
    assert first.built_s is not None
    assert build.native_status("answer") is first and build.statuses() == [first]
    _forget(monkeypatch)
    second = build.load_status("answer", [source])
    assert second.built_s is None and _answer(second) == 42


@needs_compiler
def test_a_changed_header_or_flag_builds_anew(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _answer(build.load_status("answer", [source])) == 42
    (source.parent / "answer.h").write_text("#ifndef ANSWER\n#define ANSWER 43\n#endif\n")
    _forget(monkeypatch)
    assert _answer(build.load_status("answer", [source])) == 43
    _forget(monkeypatch)
    assert _answer(build.load_status("answer", [source], flags=["-DANSWER=44"])) == 44


@needs_compiler
def test_cached_build_outlives_the_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _answer(build.load_status("answer", [source])) == 42
    _forget(monkeypatch)
    monkeypatch.setattr(build, "find_toolchain", lambda: None)
    assert _answer(build.load_status("answer", [source])) == 42


def test_no_compiler_is_one_clear_line_logged_once(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "find_toolchain", lambda: None)
    with caplog.at_level(logging.INFO, logger="gog_edge.native"):
        assert build.load_library("answer", [source], fallback="the numpy kernel is used") is None
        assert build.load_library("answer", [source], fallback="the numpy kernel is used") is None
    status = build.native_status("answer")
    assert status is not None
    assert status.reason == "no C++ compiler found: the numpy kernel is used; install g++"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_switched_off(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOG_EDGE_NO_NATIVE", "1")
    status = build.load_status("answer", [source], fallback="numpy is used")
    assert status.library is None
    assert status.reason == "native code is switched off by GOG_EDGE_NO_NATIVE: numpy is used"


@needs_compiler
def test_a_compile_error_is_reported_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int answer( { return 1; }\n")
    status = build.load_status("answer", [source])
    assert status.library is None and status.reason is not None
    assert "failed on answer.cpp" in status.reason and "\n" not in status.reason
    _forget(monkeypatch)
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled a source known to fail"))
    again = build.load_status("answer", [source])
    assert again.reason is not None and "delete it to try again" in again.reason
    assert not list(build.cache_directory().glob("*.so"))


def test_missing_source_and_unusable_cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = build.load_status("gone", [source.with_name("gone.cpp")])
    assert status.reason is not None and "gone.cpp is missing" in status.reason
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build, "find_toolchain", lambda: None)
    status = build.load_status("answer", [source])
    assert status.reason is not None and "no C++ compiler found" in status.reason


def _build_in_child(source: str, queue: multiprocessing.Queue[tuple[int, bool]]) -> None:
    status = build.load_status("answer", [Path(source)])
    queue.put((_answer(status), status.built_s is not None))


@needs_compiler
def test_two_processes_compile_once(source: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[int, bool]] = context.Queue()
    children = [context.Process(target=_build_in_child, args=(str(source), queue)) for _ in range(2)]
    for child in children:
        child.start()
    outcomes = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(timeout=60)
    assert [value for value, _ in outcomes] == [42, 42]
    assert sum(built for _, built in outcomes) == 1
    leftovers = [path.name for path in build.cache_directory().iterdir() if path.name.startswith(".")]
    assert leftovers == []


@needs_compiler
def test_a_library_without_its_seal_is_left_to_the_process_that_is_writing_it(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(path: Path) -> None:
        other.start()
        other.join(timeout=2)  # it waits for the lock
        assert other.is_alive() and path.is_file()
        seal(path)

    found: list[build.NativeStatus] = []
    other = threading.Thread(target=lambda: found.append(build._load("answer", [source], (), "")))
    monkeypatch.setattr(build, "seal", slow)
    first = build.load_status("answer", [source])
    other.join(timeout=60)
    assert first.built_s is not None and found[0].built_s is None
    assert _answer(first) == _answer(found[0]) == 42
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_cpu_identity_and_the_named_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cpu_identity() == cpu_identity() and len(cpu_identity()) == 64
    fake = tmp_path / "my-c++"
    fake.write_text("#!/bin/sh\necho fake 1.0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    toolchain = find_toolchain()
    assert toolchain is not None and toolchain.path == fake and toolchain.version() == "fake 1.0"
    assert str(os.path.realpath(fake)) in toolchain.identity
