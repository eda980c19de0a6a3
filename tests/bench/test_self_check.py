"""The self-check: honest without a GPU, complete with one (a stand-in), and able to fail."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.bench.self_check import run as checks
from gog_edge.bench.self_check.conversation import Talk, agrees, compare
from gog_edge.bundle import Bundle
from gog_edge.cli.main import run
from gog_edge.crop import cuda, cuda_driver
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.engines.tensorrt.decoder import TrtDecoder
from gog_edge.errors import BenchError, EngineError, UsageError
from tests.crop.fake_gpu import FakeDriver, build_grid
from tests.engines.host_trt import host_engine, with_engines
from tests.runtime.fakes import make_bundle
from tests.versions import need_portable

TOKENS = 4
PLAN = {"capacity": 512, "chunk": 64, "verify": 8, "image_patches": [16, 64, 4096]}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SIZE", (240, 180))
    monkeypatch.setattr("gog_edge.bench.self_check.conversation.SIZE", (240, 180))


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    need_portable()
    return make_bundle(tmp_path_factory.mktemp("portable"), backend="portable")


@pytest.fixture(scope="module")
def grid_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: int = 0) -> Any:
        raise EngineError("no CUDA device 0: there is no driver; see gog-edge doctor")

    monkeypatch.setattr(cuda_driver, "open_driver", none)
    monkeypatch.setattr("gog_edge.engines.tensorrt.cuda.open_driver", none)
    monkeypatch.setattr("gog_edge.crop.cuda_compile.crop_cubin", lambda arch, folder: b"cubin")

    def quiet(name: str, bundle: Bundle, options: Any = None) -> Any:
        return create_engine(name, bundle, OrtOptions(threads=1, spin=False) if name == "cpu" else options)

    monkeypatch.setattr(checks, "create_engine", quiet)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, grid_library: ctypes.CDLL) -> FakeDriver:
    """A machine whose GPU is played by the host: the crop kernel's grid, and the engine's leaf calls."""
    driver = FakeDriver(grid_library)
    monkeypatch.setattr(cuda_driver, "open_driver", lambda device=0: driver)
    monkeypatch.setattr(cuda, "crop_cubin", lambda arch, directory: b"\x7fELF gog_crop")
    monkeypatch.setattr(checks, "_CROPS", checks._CROPS[:3])
    monkeypatch.setattr(checks, "_CROP_PIXELS", 64 * 64)  # the host emulates every thread of the grid
    monkeypatch.setattr(checks, "_REPEATS", 2)

    def create(name: str, bundle: Bundle, options: Any = None) -> Any:
        if name == "tensorrt-rtx":
            return host_engine(bundle, report=PLAN)
        return create_engine(name, bundle, OrtOptions(threads=1, spin=False))

    monkeypatch.setattr(checks, "create_engine", create)
    return driver


def by_name(report: checks.SelfCheck) -> dict[str, checks.Check]:
    return {check.name: check for check in report.checks}


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_nothing_claims_to_have_run(portable: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.core")
    report = checks.self_check(portable.root, "tensorrt-rtx", tokens=TOKENS)
    assert len(report.checks) == 4 and not report.failed
    for check in report.checks:
        assert not check.ran
        assert "no CUDA device 0" in check.why_not and "\n" not in check.why_not
    found = by_name(report)
    assert "compiles the kernel for sm_87 (5 bytes)" in found["crop kernel"].instead
    assert all(check.facts == {} for check in report.checks)
    assert not any("passed" in line for line in checks.lines(report))


@pytest.mark.usefixtures("no_gpu")
def test_other_bundles_say_what_is_missing(bundle_ort: Path) -> None:
    report = checks.self_check(bundle_ort, tokens=TOKENS)
    parity = by_name(report)["engine parity"]
    assert "name one with --engine" in parity.why_not
    assert parity.ok is None
    alone = checks.self_check(None)
    assert {c.why_not for c in alone.checks[1:]} == {"no bundle was given (--bundle DIR)"}


@pytest.fixture
def bundle_ort(tiny_bundle: Path) -> Path:
    return tiny_bundle


def test_with_a_gpu_everything_runs(portable: Bundle, gpu: FakeDriver) -> None:
    report = checks.self_check(portable.root, "tensorrt-rtx", tokens=TOKENS)
    found = by_name(report)
    assert not report.failed and all(check.ran for check in report.checks)
    assert found["crop kernel"].ok and found["crop kernel"].facts["crops"] == 3
    parity = found["engine parity"]
    assert parity.ok and parity.facts["steps"] == 2 * TOKENS + 5
    assert parity.facts["rewind_error_max"] < 1e-4
    assert found["cuda graphs"].ok and found["cuda graphs"].facts["replayed"] > 0
    assert found["engine timing"].ok is None and found["engine timing"].facts["decode_s"]["n"] == 16
    assert report.gpu == "fake (sm_87)" and report.engine["name"] == "tensorrt-rtx"
    assert not gpu.live
    assert any(line == "engine parity: passed" for line in checks.lines(report))


def test_a_wrong_crop_fails(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cuda.CudaCropper.to_host

    def one_bit(self: Any, array: Any) -> Any:
        result = right(self, array)
        result.view(np.uint32)[0, 0] ^= 1
        return result

    monkeypatch.setattr(cuda.CudaCropper, "to_host", one_bit)
    report = checks.self_check(None)
    assert report.failed and len(by_name(report)["crop kernel"].facts["different"]) == 3


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("fault", ["rotary", "position", "nan"])
def test_a_wrong_engine_fails(portable: Bundle, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = TrtDecoder._stage

    def wrong(self: TrtDecoder, inputs: Any, past: int, count: int, last_k: int) -> int:
        import dataclasses

        if fault == "rotary":
            inputs = dataclasses.replace(inputs, rope_sin=-inputs.rope_sin)
        elif fault == "position":
            past = max(past - 1, 0)
        else:
            inputs = dataclasses.replace(inputs, embeds=inputs.embeds * np.nan)
        return right(self, inputs, past, count, last_k)

    monkeypatch.setattr(TrtDecoder, "_stage", wrong)
    report = checks.self_check(portable.root, "tensorrt-rtx", tokens=TOKENS)
    assert report.failed and by_name(report)["engine parity"].ok is False, by_name(report)["engine parity"].facts


def test_the_cpus_results_can_be_kept(portable: Bundle, gpu: FakeDriver, tmp_path: Path) -> None:
    kept = tmp_path / "reference.gogt"
    first = checks.self_check(portable.root, "tensorrt-rtx", tokens=TOKENS, reference=kept)
    assert kept.is_file()
    again = checks.self_check(portable.root, "tensorrt-rtx", tokens=TOKENS, reference=kept)
    assert by_name(first)["engine parity"].facts == by_name(again)["engine parity"].facts
    built = with_engines(portable, ("tensorrt-rtx", "1", "89"))
    assert checks._identity(built) == checks._identity(portable)  # engines may be built on another machine
    with pytest.raises(BenchError, match="give --tokens 4"):
        checks.self_check(portable.root, "tensorrt-rtx", tokens=TOKENS + 1, reference=kept)
    with pytest.raises(BenchError, match="not the self-check reference of this bundle"):
        Talk.load(kept, "another")


def test_near_ties_are_told_from_errors() -> None:
    row = np.array([1.0, 1.0 + 1e-3, -5.0], np.float32)
    tie, wrong = row[[1, 0, 2]], row[[2, 1, 0]]
    feature = np.ones((2, 3), np.float32)
    talks = [Talk([1], [feature], [r, r], np.zeros((0, 3), np.float32), r) for r in (row, tie, wrong * 3)]
    near = compare(talks[0], talks[1])
    assert (near["near_ties"], near["other_tokens"]) == (3, 0) and agrees(near, "fp16")
    assert not agrees(compare(talks[0], talks[2]) | {"other_tokens": 1.0}, "int4")


def test_the_cpu_is_not_compared_with_itself() -> None:
    with pytest.raises(UsageError, match="compares a GPU engine with the CPU"):
        checks.self_check(None, "cpu")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("spelling", ["self-check", "--self-check"])
def test_the_command_has_two_spellings(
    spelling: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert run(["bench", spelling, "--bundle", str(tiny_bundle), "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["format"] == checks.FORMAT and printed["failed"] is False
    assert [c["ran"] for c in printed["checks"]] == [False] * 4


@pytest.mark.usefixtures("gpu")
def test_a_difference_is_exit_code_1(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "agrees", lambda metrics, precision: False)
    arguments = ["bench", "self-check", "--bundle", str(portable.root), "--engine", "tensorrt-rtx", "--tokens", "4"]
    assert run(arguments) == 1
    assert "engine parity: FAILED" in capsys.readouterr().out
