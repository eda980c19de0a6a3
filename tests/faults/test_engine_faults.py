"""Bundles and engines that are broken: every case ends in one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import gog_edge
from gog_edge.bundle import Bundle, hash_file
from gog_edge.deadline import Budget
from gog_edge.engines.base import DecoderInputs
from gog_edge.engines.ort.engine import create
from gog_edge.engines.ort.options import DEVICES, OrtOptions
from gog_edge.engines.registry import ENGINES, create_engine
from gog_edge.errors import BundleError, EngineError, UsageError
from gog_edge.runtime.decoder import TokenEmbedding
from tests.runtime.fakes import make_bundle

ONE_THREAD = OrtOptions(threads=1, spin=False)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("good")).root


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(root: Path, change: Any) -> None:
    """Change the manifest; digests of files are kept up to date."""
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    data.pop("seal", None)
    for name in data["files"]:
        if (root / name).is_file():
            digest = hash_file(root / name)
            data["files"][name] = {"sha256": digest.sha256, "size": digest.size}
    path.write_text(json.dumps(data))


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 600
    return text


def test_damaged_graphs_are_named(broken: Path) -> None:
    (broken / "decoder.onnx").write_bytes(b"garbage" * 100)
    edit(broken, lambda data: None)
    with pytest.raises(EngineError, match=r"can't load .*decoder\.onnx") as e:
        gog_edge.load(broken, engine_options=ONE_THREAD)
    one_line(e.value)


def test_truncated_weights_are_met_at_load(broken: Path) -> None:
    data = (broken / "decoder.onnx.data").read_bytes()
    (broken / "decoder.onnx.data").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data has \d+ bytes instead of"):
        gog_edge.load(broken)
    edit(broken, lambda data: None)
    with pytest.raises(EngineError) as e:
        gog_edge.load(broken, engine_options=ONE_THREAD)
    one_line(e.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["graphs"]["decoder"]["inputs"].pop(), "inputs differ from the manifest"),
        (lambda d: d["graphs"]["decoder"]["outputs"].pop(), "outputs differ from the manifest"),
        (lambda d: d["graphs"]["vision"]["inputs"][0].update(dtype="float16"), "the manifest says float16"),
        (lambda d: d["graphs"]["vision"]["inputs"][0].update(shape=["n", 7]), r"the manifest says \['n', 7\]"),
        (lambda d: d["graphs"].pop("vision"), "vision"),
    ],
)
def test_manifests_that_do_not_fit_the_graphs(broken: Path, change: Any, match: str) -> None:
    edit(broken, change)
    with pytest.raises((BundleError, EngineError), match=match) as e:
        create(Bundle.open(broken), ONE_THREAD)
    one_line(e.value)


def test_a_backend_that_does_not_fit(broken: Path) -> None:
    edit(broken, lambda d: d.update(backend="portable"))
    with pytest.raises(EngineError, match="do not fit backend 'portable'"):
        create(Bundle.open(broken), ONE_THREAD)


def test_foreign_operators_are_refused(broken: Path) -> None:
    edit(broken, lambda d: d["graphs"]["decoder"]["domains"].update({"com.acme": 1}))
    with pytest.raises(EngineError, match=r"com\.acme"):
        create(Bundle.open(broken), ONE_THREAD)


def test_an_embedding_of_the_wrong_size(broken: Path) -> None:
    edit(broken, lambda d: d["embedding"].update(rows=d["embedding"]["rows"] + 1))
    with pytest.raises(BundleError, match="embedding"):
        TokenEmbedding(Bundle.open(broken))


@pytest.mark.parametrize("name", ["tokenizer.json"])
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(BundleError, match=name):
        gog_edge.load(broken)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a gog-edge bundle"):
        gog_edge.load(tmp_path)


def test_unknown_engines_and_devices(good: Path) -> None:
    bundle = Bundle.open(good)
    with pytest.raises(UsageError, match="did you mean 'tensorrt-rtx'"):
        create_engine("tensorrt-rtxx", bundle)
    with pytest.raises(UsageError, match="known: cpu, cuda"):
        create_engine("???", bundle)
    with pytest.raises(UsageError, match="did you mean 'cuda'"):
        create(bundle, ONE_THREAD, device="cuta")
    with pytest.raises(UsageError, match="OrtOptions"):
        create(bundle, {"threads": 1})  # type: ignore[arg-type]
    for bad in ({"threads": -1}, {"initial_context": 0}):
        with pytest.raises(UsageError):
            OrtOptions(**bad)  # type: ignore[arg-type]
    have = onnxruntime.get_available_providers()
    missing = [name for name, device in DEVICES.items() if device.provider not in have]
    assert missing and "cpu" not in missing
    for name in missing:
        with pytest.raises(EngineError, match="has no "):
            create(bundle, ONE_THREAD, device=name)
    ours = [entry for name in ENGINES.names() if (entry := ENGINES.get(name)) is not None]
    assert len(ours) == 12
    assert sum(entry.gpu for entry in ours) == 7  # two of them OpenVINO's


def test_a_closed_engine_says_so(good: Path) -> None:
    engine = create(Bundle.open(good), ONE_THREAD)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        _ = engine.decoder


def test_an_interrupted_run_leaves_the_cache_usable(good: Path) -> None:
    """Terminated in the middle of a prefill: the rows before it are untouched, the same run again is the same."""
    bundle = Bundle.open(good)
    decoder = create(bundle, ONE_THREAD).decoder
    spec = bundle.manifest.decoder
    rng = np.random.default_rng(0)

    def inputs(count: int) -> DecoderInputs:
        angles = rng.random((count, spec.head_dim // 2), np.float32)
        return DecoderInputs(
            rng.standard_normal((count, spec.hidden), np.float32), np.cos(angles), np.sin(angles), None, 1
        )

    first, second = inputs(20), inputs(700)
    cache = decoder.new_cache(900)
    decoder.run(first, cache, 0)
    kept = [np.array(a) for a in cache.read(0, 20)]
    expected = decoder.run(second, cache, 20).copy()
    stopped = 0
    for delay in (0.0, 0.001, 0.003, 0.006, 0.01):
        import threading

        budget = Budget()
        timer = threading.Timer(delay, budget.cancel)
        timer.start()
        try:
            decoder.run(second, cache, 20, budget)
        except gog_edge.GogEdgeError as e:
            assert "cancelled" in str(e)
            stopped += 1
        timer.join()
        assert all(np.array_equal(a, b) for a, b in zip(kept, cache.read(0, 20)))
        assert np.array_equal(decoder.run(second, cache, 20), expected)
    assert stopped


def test_wrong_vision_inputs_are_refused(good: Path) -> None:
    engine = create(Bundle.open(good), ONE_THREAD)
    with pytest.raises(EngineError, match="do not fit this version"):
        engine.vision.run({"patches": np.zeros((4, 3), np.float32)})
