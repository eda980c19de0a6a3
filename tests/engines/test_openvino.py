"""OpenVINO against ONNX Runtime: the same tokens, over turns with images, for every family; on its CPU plugin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle, BundleWriter
from gog_edge.deadline import Budget, DeadlineReached
from gog_edge.engines.base import DecoderInputs, Engine, RecurrentState, cached_bias, new_bias
from gog_edge.engines.openvino import OpenVinoOptions
from gog_edge.engines.openvino.decoder import _pieces
from gog_edge.engines.openvino.engine import create
from gog_edge.engines.openvino.graph import open_device
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine, default_engine
from gog_edge.errors import EngineError, UsageError
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.export.synthetic.checkpoint import make_checkpoint
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, Region, Text
from tests.runtime.conftest import picture
from tests.runtime.fakes import make_bundle
from tests.versions import need_experts, need_hybrid

FAMILIES = ("tiny-qwen3-vl", "tiny-qwen2.5-vl", "tiny-qwen3.5", "tiny-qwen3-vl-moe", "tiny-qwen3.5-moe")
NANO = Path(__file__).resolve().parents[2] / "models" / "gog-nano"
ORT = OrtOptions(threads=1, spin=False)
OPTIONS = OpenVinoOptions(threads=1)
STATIC = OpenVinoOptions(threads=1, static=True, chunk=16, initial_context=64)


def model(bundle: Bundle, engine: Engine) -> Model:
    return Model.assemble(bundle, engine, RunOptions(prefix_cache=False))


def turns(session: Session, first: int = 0, count: int = 3) -> list[int]:
    """Greedy tokens of `count` turns, each with a picture of its own size."""
    ids: list[int] = []
    for index in range(first, first + count):
        region = (None, Region(20, 10, 120, 110), Region(5, 5, 60, 130))[index]
        session.add_image(picture(index), region, source=index)
        session.append([Control("<|im_start|>user\n"), ImagePart(index), Text("what?"), Control("<|im_end|>\n")])
        result = TurnResult()
        list(TurnWriter(session, Sampler(Sampling()), Speculation(0)).turn(TurnOptions(8, ()), None, result))
        ids += result.ids
    return ids


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    return request.param, make_bundle(tmp_path_factory.mktemp("ov"), request.param, "openvino")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("ov3"), backend="openvino")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    pytest.importorskip("openvino")
    made = create(bundle, OPTIONS)
    yield made
    made.close()


def test_the_same_tokens_as_the_operators_of_onnxruntime(family: tuple[str, Bundle], tmp_path: Path) -> None:
    """The checkpoint once more, with GroupQueryAttention: what is written out must be the same."""
    name, plain = family
    need_hybrid("ort") if "3.5" in name else need_experts("ort")
    stock = make_bundle(tmp_path, name, "ort")
    want = turns(Session(model(stock, create_engine("cpu", stock, ORT))))
    assert turns(Session(model(plain, create_engine("cpu", plain, ORT)))) == want
    pytest.importorskip("openvino")
    assert turns(Session(model(plain, create(plain, OPTIONS)))) == want
    if "3.5" not in name:
        assert turns(Session(model(plain, create(plain, STATIC)))) == want


@pytest.mark.parametrize("name", ["gog-nano", "tiny-qwen2.5-vl"])
@pytest.mark.parametrize(("precision", "kinds"), [("int8", {"i8"}), ("int4", {"i8", "i4"})])
def test_integer_weights_are_multiplied_as_they_are_stored(
    precision: Any, kinds: set[str], name: str, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    checkpoint = NANO if name == "gog-nano" else make_checkpoint(name, tmp_path / "c", dtype="float32")
    made = export_bundle(checkpoint, tmp_path / "b", ExportOptions(precision=precision, backend="openvino"))
    engine = create(made, replace(OPTIONS, precision="f32"))
    plain = create_engine("cpu", made, replace(ORT, optimize="none"))  # else it rounds activations to 8 bits
    assert turns(Session(model(made, engine))) == turns(Session(model(made, plain)))
    runtime = engine.decoder._free.get_runtime_model()
    found = {
        op.input(1).get_element_type().get_type_name()
        for op in runtime.get_ordered_ops()
        if op.get_rt_info()["layerType"].value == "FullyConnected"
    }
    assert found <= kinds and kinds - found <= {"i4"}, found


def test_a_session_is_rewound_saved_and_taken_over(bundle: Bundle, engine: Engine, tmp_path: Path) -> None:
    ov, ort = model(bundle, engine), model(bundle, create_engine("cpu", bundle, ORT))
    session = Session(ov)
    first = turns(session, count=1)
    mark = session.mark()
    second = turns(session, 1, 1)
    session.rewind(mark)
    assert turns(session, 1, 1) == second
    loaded, _ = load_session(save_session(session, tmp_path / "s.gogs"), ov)
    third = turns(loaded, 2, 1)
    assert first + second + third == turns(Session(ort))


def test_the_cache_grows_and_keeps_its_rows(engine: Engine) -> None:
    cache: Any = engine.decoder.new_cache(3)
    assert cache.capacity == 512
    rows = [np.random.default_rng(i).normal(size=(a.shape[1], 5, a.shape[3])).astype(a.dtype) for i, a in
            enumerate(cache.arrays.values())]  # fmt: skip
    cache.write(2, rows)
    cache.reserve(513, 7)
    assert cache.capacity == 1024 and all((a == b).all() for a, b in zip(cache.read(2, 7), rows))
    assert not any(a.any() for a in cache.read(7, 1024))
    with pytest.raises(EngineError, match="do not fit a KV cache"):
        cache.write(1022, rows)


def test_a_deadline_ends_a_run_and_leaves_the_cache(bundle: Bundle, engine: Engine) -> None:
    cache, hidden = engine.decoder.new_cache(64), bundle.manifest.decoder.hidden
    half = bundle.manifest.decoder.head_dim // 2
    inputs = DecoderInputs(
        np.ones((4, hidden), np.float32), np.ones((4, half), np.float32), np.zeros((4, half), np.float32), None, 1
    )
    engine.decoder.run(inputs, cache, 0)
    before = [a.copy() for a in cache.read(0, 4)]
    with pytest.raises(DeadlineReached):
        engine.decoder.run(inputs, cache, 4, Budget(0.0))
    assert all((a == b).all() for a, b in zip(cache.read(0, 4), before))
    assert not isinstance(cache, RecurrentState) or cache.state() == []


def test_the_state_of_linear_attention_must_be_where_the_run_begins(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    hybrid = make_bundle(tmp_path, "tiny-qwen3.5", "openvino")
    cache = create(hybrid, OPTIONS).decoder.new_cache(8)
    cache.seen = 5
    with pytest.raises(EngineError, match="after 5 tokens, a run after 3 can't use it"):
        cache.begin(3)
    with pytest.raises(EngineError, match="linear attention need runs of any length"):
        create(hybrid, STATIC)


def test_nothing_is_sent(bundle: Bundle) -> None:
    """`import openvino` reports itself with the package openvino_telemetry, where it can."""
    pytest.importorskip("openvino")
    code = f"""
import socket, subprocess, sys
sent = []
socket.socket.connect = lambda *a: sent.append(a)
from gog_edge.bundle import Bundle
from gog_edge.engines.openvino.engine import create
create(Bundle.open({str(bundle.root)!r}))
assert sent == [] and not [m for m in sys.modules if m.startswith("openvino_telemetry")]
assert "openvino.tools.ovc.telemetry_stub" in sys.modules or "openvino.tools" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_masks() -> None:
    low = np.finfo(np.float32).min
    assert cached_bias(2, 3, 4).flags.c_contiguous
    assert (cached_bias(2, 1, 4)[0, 0] == [[0, 0, low, low]]).all()
    assert (new_bias(3, 1)[0, 0] == [[0, low, low], [low, 0, low], [low, 0, 0]]).all()


@pytest.mark.parametrize("last_k", [1, 3, 16])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 50])
def test_pieces_cover_a_run_and_keep_the_last_rows_together(count: int, last_k: int) -> None:
    pieces = _pieces(count, 16, last_k)
    assert [a for a, _ in pieces] == [0] * (pieces[0][0] == 0) + [b for _, b in pieces[:-1]] and pieces[-1][1] == count
    assert all(1 <= b - a <= 16 for a, b in pieces)
    assert pieces[-1][1] - pieces[-1][0] >= min(last_k, count)


class TestRefusals:
    def test_bundles_and_options_of_others(self, bundle: Bundle, tmp_path: Path) -> None:
        assert default_engine(bundle.manifest) == "openvino"
        with pytest.raises(UsageError, match="takes OpenVinoOptions, not OrtOptions"):
            create(bundle, ORT)  # type: ignore[arg-type]
        with pytest.raises(EngineError, match="was exported for ort: export the checkpoint with --backend openvino"):
            create(make_bundle(tmp_path, backend="ort"))

    def test_options(self) -> None:
        for wrong in ({"threads": -1}, {"precision": "f8"}, {"chunk": 0}):
            with pytest.raises(UsageError):
                OpenVinoOptions(**wrong)  # type: ignore[arg-type]

    def test_a_device_that_is_not_there(self) -> None:
        core = pytest.importorskip("openvino").Core()
        if any(d.startswith("NPU") for d in core.available_devices):
            pytest.skip("this machine has an NPU")
        with pytest.raises(EngineError, match=r"finds no NPU here \(it has CPU.*\); its driver"):
            open_device("NPU")

    def test_a_damaged_graph_is_one_line(self, bundle: Bundle, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        with BundleWriter(tmp_path / "b") as writer:
            for name in bundle.manifest.files:
                if name != "manifest.json":
                    (writer.root / name).parent.mkdir(parents=True, exist_ok=True)
                    (writer.root / name).write_bytes(bundle.path(name).read_bytes())
            (writer.root / "decoder.onnx").write_bytes(b"not a graph")
            damaged = writer.commit(bundle.manifest)
        with pytest.raises(EngineError, match=r"OpenVINO can't read decoder.onnx") as caught:
            create(damaged)
        assert "\n" not in str(caught.value)
