"""The HF model behind the runtime's session and agent: same tokens as the fp32 bundle, same contract as any engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.cli.main import run
from gog_edge.engines.base import CutsCrops, DecoderRunner, Engine, KvCache, VisionRunner
from gog_edge.engines.registry import create_engine
from gog_edge.errors import CheckpointError, EngineError, UsageError
from gog_edge.export.options import ExportOptions
from gog_edge.export.pipeline import export_bundle
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.types import Control, ImagePart, Region, Text

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
OPTIONS = RunOptions(grammar="off", prefix_cache=False, prefill_chunk=24, turn_tokens=12, max_turns=2)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def pair(
    request: pytest.FixtureRequest, tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, str]:
    """A bundle in fp32 and the name of the engine that runs its checkpoint."""
    checkpoint = tiny_checkpoints[request.param]
    out = tmp_path_factory.mktemp("b") / "b"
    return export_bundle(checkpoint, out, ExportOptions(precision="fp32")), f"transformers:{checkpoint}"


@pytest.fixture(scope="module")
def models(pair: tuple[Bundle, str]) -> Iterator[tuple[Model, Model]]:
    """The same policy on ONNX Runtime and on transformers."""
    bundle, name = pair
    engines = [create_engine("cpu", bundle), create_engine(name, bundle)]
    yield Model.assemble(bundle, engines[0], OPTIONS), Model.assemble(bundle, engines[1], OPTIONS)
    for engine in engines:
        engine.close()


def _begin(model: Model) -> Session:
    session = Session(model)
    frame = Frame(np.random.default_rng(1).integers(0, 256, (75, 101, 3), np.uint8), "noise")
    for region in (None, Region(9.5, 3.0, 77.0, 70.2)):
        image = session.add_image(frame, region).index
        session.append([Control("<|im_start|>user\n"), ImagePart(image), Text("What?"), Control("<|im_end|>\n")])
    return session


def _greedy(session: Session, count: int) -> tuple[list[int], list[np.ndarray]]:
    tokens, rows = [], []
    for _ in range(count):
        rows.append(session.run()[0].copy())
        tokens.append(int(rows[-1].argmax()))
        session.extend(tokens[-1:])
    return tokens, rows


def test_it_writes_what_the_bundle_writes(models: tuple[Model, Model]) -> None:
    ours, theirs = (_greedy(_begin(model), 20) for model in models)
    assert ours[0] == theirs[0]
    np.testing.assert_allclose(np.stack(ours[1]), np.stack(theirs[1]), atol=2e-3)


def test_it_is_an_engine(models: tuple[Model, Model]) -> None:
    model = models[1]
    engine = model.engine
    assert isinstance(engine, Engine)
    assert isinstance(engine.vision, VisionRunner)
    assert isinstance(engine.vision, CutsCrops)
    assert isinstance(engine.decoder, DecoderRunner)
    assert isinstance(engine.decoder.new_cache(8), KvCache)
    assert engine.describe().name == "transformers"


def test_sessions_rewind_and_load(models: tuple[Model, Model], tmp_path: Path) -> None:
    model = models[1]
    session = _begin(model)
    mark = session.mark()
    first, rows = _greedy(session, 6)
    session.rewind(mark)
    again, rows_again = _greedy(session, 6)
    assert again == first
    np.testing.assert_allclose(np.stack(rows_again), np.stack(rows), atol=1e-4)
    save_session(session, tmp_path / "s")
    loaded, _ = load_session(tmp_path / "s", model)
    assert _greedy(loaded, 4)[0] == _greedy(session, 4)[0]


def test_a_state_is_put_back_too(models: tuple[Model, Model]) -> None:
    """Where the policy has one: a cut at any place is read again from a copy, and what follows is the same."""
    model = models[1]
    session = _begin(model)
    tokens, _ = _greedy(session, 9)
    session.cut(len(session) - 5)
    assert _greedy(session, 5)[0] == tokens[4:]
    session.cut(session.sequence.spans[0].stop + 3)
    session.append([Text("Who?")])
    fresh = Session(model)
    fresh.sequence.images = session.sequence.images
    span = session.sequence.spans[0]
    fresh.extend(session.tokens[: span.start].tolist())
    fresh.sequence.append_image(span.rows, span.columns, 0)
    fresh.extend(session.tokens[span.stop :].tolist())
    np.testing.assert_allclose(session.run(), fresh.run(), atol=1e-4)


def test_the_agent_answers_with_it(pair: tuple[Bundle, str], photo: Path) -> None:
    bundle, name = pair
    said = []
    for engine in ("cpu", name):
        with gog_edge.load(bundle, engine=engine, options=OPTIONS) as agent:
            answer = agent.ask(photo, "What is it?")
            said.append([step.turn.raw for step in answer.steps])
    assert said[0] == said[1]


def test_eval_takes_it(pair: tuple[Bundle, str], photo: Path, tmp_path: Path) -> None:
    bundle, name = pair
    row = {"id": "q", "image": str(photo), "question": "What is it?", "answers": ["x"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "r.jsonl"
    options = ["--engine", name, "--threads", "1", "--max-turns", "1", "--grammar", "off"]
    assert run(["eval", str(tmp_path / "q.jsonl"), "--bundle", str(bundle.root), "--out", str(out), *options]) == 0
    result = json.loads(out.read_text().splitlines()[-1])
    assert result["id"] == "q"
    assert not result["error"]


def test_what_it_refuses(pair: tuple[Bundle, str], tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bundle, _ = pair
    other = next(path for family, path in tiny_checkpoints.items() if family != bundle.manifest.family)
    with pytest.raises(EngineError, match="was not exported from"):
        create_engine(f"transformers:{other}", bundle)
    with pytest.raises(UsageError, match="write transformers:CHECKPOINT"):
        create_engine("transformers", bundle)
    with pytest.raises(UsageError, match="write cpu"):
        create_engine("cpu:x", bundle)
    with pytest.raises(CheckpointError, match="no such folder"):
        create_engine(f"transformers:{tmp_path / 'none'}", bundle)
