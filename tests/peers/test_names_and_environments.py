"""Peers without running one: how they are named, their environments, their conversions, the workers' helpers."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from gog_edge.cli.main import run
from gog_edge.errors import BenchError, UsageError
from gog_edge_peers import environment, prepare
from gog_edge_peers.create import create, pairs
from gog_edge_peers.registry import PEERS, find, parse
from gog_edge_peers.workers import run_openai, wire


def test_compare_names_peers_variants_and_addresses() -> None:
    text = "openvino-genai:sdpa,openai:http://host:8000/v1,model=big,llama.cpp:http://127.0.0.1:8080/v1,transformers"
    found = parse(text)
    assert [w.label for w in found] == ["openvino-genai:sdpa", "openai:host:8000", "llama.cpp", "transformers"]
    assert found[0].options == {"backend": "SDPA"}
    assert (found[1].model, found[1].options) == ("http://host:8000/v1", {"model": "big"})
    assert found[2].model == "http://127.0.0.1:8080/v1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vllm", "no peer 'vllm'"),
        ("openvino-genai:fast", "no variant 'fast'"),
        ("openai:ftp://host", "no address"),
        ("openai:http://me:secret@host/v1", "must not carry"),
        ("model=x", "follows no address"),
        ("transformers,model=x", "follows no address"),
        ("transformers,transformers", "twice"),
        (" , ", "names no peer"),
    ],
)
def test_what_compare_can_not_mean_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_a_missing_environment_or_model_names_the_mend(tmp_path: Path) -> None:
    wanted = parse("openvino-genai")[0]
    with pytest.raises(BenchError, match=r"peers prepare openvino-genai"):
        create(wanted, {}, {})
    with pytest.raises(BenchError, match=r"is not a folder"):
        create(wanted, {"openvino-genai": str(tmp_path / "none")}, {})
    with pytest.raises(BenchError, match=r"peers install openvino-genai"):
        create(wanted, {"openvino-genai": str(tmp_path)}, {})
    with pytest.raises(BenchError, match=r"http://host:port/v1"):
        create(parse("llama.cpp")[0], {}, {})
    assert pairs(["transformers=a=b"], "--peer-model") == {"transformers": "a=b"}
    with pytest.raises(UsageError, match="NAME=VALUE"):
        pairs(["transformers"], "--peer-model")


def test_install_shows_its_commands_and_uses_the_cache_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "peers", "install", "openvino-genai", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert str(environment.folder(find("openvino-genai"))) in shown[0] and "-m venv" in shown[0]
    assert "-m pip install" in shown[1] and "openvino-genai" in shown[1] and "optimum" not in shown[1]
    assert not environment.folder(find("openvino-genai")).exists()
    assert run(["bench", "peers", "install", "openai"]) == 2
    assert "start yourself" in capsys.readouterr().err


def test_listing_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "peers", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PEERS) and "not installed" in text


def test_a_failing_command_is_one_error(tmp_path: Path) -> None:
    shown: list[str] = []
    with pytest.raises(BenchError, match="failed with code 3"):
        environment.run([sys.executable, "-c", "raise SystemExit(3)"], shown.append)
    assert len(shown) == 1
    with pytest.raises(BenchError, match="can't be run"):
        environment.run([str(tmp_path / "none")], shown.append)


def test_our_packages_stay_out_of_a_peers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "ours")
    assert "PYTHONPATH" not in environment.clean_environment()


@pytest.fixture
def job(tmp_path: Path) -> prepare.Job:
    checkpoint, tools, python = tmp_path / "checkpoint", tmp_path / "llama.cpp", tmp_path / "env/bin/python"
    for file in (
        checkpoint / "config.json", tools / "convert_hf_to_gguf.py", tools / "build/bin/llama-quantize",
        python, python.parent / "optimum-cli",
    ):  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('#!/bin/sh\necho "$@" > "$(dirname $0)/called"\n')
        file.chmod(0o755)
    return prepare.Job(python, checkpoint, tmp_path / "out", tools=tools)


def test_conversions_call_the_documented_tools(job: prepare.Job) -> None:
    (openvino,) = prepare.openvino(job)
    assert openvino[1:3] == ["export", "openvino"] and openvino[-1] == str(job.out)
    assert openvino[openvino.index("--weight-format") + 1] == "int4"
    (ort,) = prepare.onnxruntime(job)
    assert ort[1:3] == ["-m", "onnxruntime_genai.models.builder"] and "int4_accuracy_level=4" in ort
    whole, tower, quantise = prepare.llama_cpp(job)
    assert "--mmproj" in tower and "--mmproj" not in whole
    assert quantise[-1] == "Q4_0" and quantise[1] == whole[-1]
    shown: list[str] = []
    prepare.prepare(find("openvino-genai"), job, shown.append)
    assert len(shown) == 1 and job.out.is_dir()
    assert "--group-size 128" in (job.python.parent / "called").read_text()


def test_conversions_refuse_what_can_not_work(job: prepare.Job, tmp_path: Path) -> None:
    def ask(name: str, **other: object) -> None:
        prepare.prepare(find(name), prepare.Job(**{**job.__dict__, **other}), lambda text: None)

    with pytest.raises(BenchError, match="reads the checkpoint"):
        ask("transformers")
    with pytest.raises(BenchError, match=r"no config\.json"):
        ask("openvino-genai", checkpoint=tmp_path)
    with pytest.raises(BenchError, match="install onnxruntime-genai --converter"):
        ask("onnxruntime-genai", python=tmp_path / "none")
    with pytest.raises(BenchError, match="--llama-cpp"):
        ask("llama.cpp", tools=None)
    with pytest.raises(BenchError, match="not empty"):
        ask("openvino-genai", out=job.checkpoint)
    (job.python.parent / "optimum-cli").unlink()
    with pytest.raises(BenchError, match="optimum-cli is missing"):
        ask("openvino-genai")
    assert not job.out.exists()


@settings(deadline=None, max_examples=40)  # the machine may be busy
@given(st.integers(1, 300), st.integers(0, 1000), st.integers(1, 6))
def test_words_come_to_the_tokens_asked_for(count: int, seed: int, bytes_a_token: int) -> None:
    def length(text: str) -> int:
        return sum(-(-len(word) // bytes_a_token) for word in text.split())

    assert length(wire.text_of(count, seed, length)) == count
    assert len(wire.text_of(count, seed).split()) == count
    assert wire.text_of(count, seed) == wire.text_of(count, seed)


def test_ids_are_ordinary_ones() -> None:
    ids = wire.token_ids(500, 3, 40)
    assert len(ids) == 500 and min(ids) >= 1 and max(ids) < 40
    assert ids != wire.token_ids(500, 4, 40)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 3)])
def test_pictures_reach_a_server_without_loss(size: tuple[int, int]) -> None:
    width, height = size
    data = random.Random(1).randbytes(width * height * 3)
    image = wire.Image(width, height, data)
    for encoded in (run_openai.bmp(image), run_openai.png(image)):
        seen = np.asarray(PilImage.open(io.BytesIO(encoded)).convert("RGB"))
        assert seen.shape == (height, width, 3) and seen.tobytes() == data


def test_a_picture_file_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.rgb").write_bytes(b"abc")
    with pytest.raises(wire.WorkerError, match="not 2x1 RGB"):
        wire.read_part({"image": str(tmp_path / "x.rgb"), "width": 2, "height": 1})


def test_llama_cpp_is_a_folder_to_serve_or_an_address(tmp_path: Path) -> None:
    wanted = parse("llama.cpp")[0]
    for model, worker in ((str(tmp_path), "run_llama_cpp"), ("http://127.0.0.1:9/v1", "run_openai")):
        subject = create(wanted, {"llama.cpp": model}, {}, 3, {"llama.cpp": "server"})
        assert subject.command[-1] == worker
        assert subject.options == {"threads": 3, **({"program": "server"} if worker == "run_llama_cpp" else {})}
    with pytest.raises(BenchError, match=r"peers prepare llama\.cpp .* or --compare llama\.cpp:http"):
        create(wanted, {"llama.cpp": str(tmp_path / "none")}, {})
    with pytest.raises(UsageError, match=r"--peer-program transformers: only llama\.cpp"):
        create(wanted, {}, {}, 0, {"transformers": "x"})
