"""Guesses change nothing: the same tokens with and without, sampled, under a grammar, over turns with images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.image.frame import Frame
from gog_edge.runtime.constraint import TokenGrammar
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, Region, Text
from tests.native.graphs import needs_ops

pytestmark = needs_ops

CALLS = r"""
start: call{1,5}
call: "look at [" /[0-9]{1,3}/ ", " /[0-9]{1,3}/ "] for the " WORD "; "
WORD: "heron" | "hero" | "her own"
"""


@pytest.fixture(scope="module", params=["tiny-qwen3-vl", "tiny-qwen2.5-vl", "tiny-qwen3.5"])
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.export.synthetic.checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("lossless")
    checkpoint = make_checkpoint(request.param, folder / "checkpoint")
    bundle = export_bundle(checkpoint, folder / "bundle", ExportOptions(backend="native", precision="int8"))
    engine = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
    yield assemble(bundle, engine)
    engine.close()


def assemble(bundle: Bundle, engine: object) -> Model:
    return Model.assemble(bundle, engine, RunOptions(prefix_cache=False))  # type: ignore[arg-type]


def conversation(
    model: Model, frame: Frame, speculation: Speculation, seed: int, turns: int, grammar: TokenGrammar | None = None
) -> tuple[list[int], TurnWriter, Session]:
    """`turns` turns about one thing or another, every third with a crop; the tokens of all of them."""
    rng, session = np.random.default_rng(seed), Session(model)
    session.add_image(frame)
    session.append([Control("<|im_start|>user\n"), ImagePart(0), Text("look at [12, 340] for the heron; ")])
    writer = TurnWriter(session, Sampler(Sampling(temperature=0.6, seed=seed)), speculation)
    for turn in range(turns):
        session.append([Control("<|im_end|>\n<|im_start|>assistant\n")])
        result = TurnResult()
        options = TurnOptions(int(rng.integers(1, 60)), ())
        list(writer.turn(options, None if grammar is None else grammar.constraint(CALLS), result))
        if turn % 3 == 1:
            index = session.add_image(frame, Region(10, 5, int(rng.integers(60, 120)), 80), source=0).index
            session.append([Control("<|im_end|>\n"), ImagePart(index), Text(result.text[:40])])
        else:
            session.append([Text(" heron, her own hero; look at [7, 7] for")])
    return session.tokens.tolist(), writer, session


@pytest.mark.parametrize("adaptive", [False, True])
def test_turns_are_the_same_with_guesses(native: Model, frame: Frame, adaptive: bool) -> None:
    guessing = Speculation(ngram_min=1, adaptive=adaptive)
    accepted = drafted = 0
    for seed in range(4):
        plain, _, old = conversation(native, frame, Speculation(0), seed, 6)
        fast, writer, new = conversation(native, frame, guessing, seed, 6)
        assert fast == plain
        assert new.usage.generated_tokens == old.usage.generated_tokens
        accepted, drafted = accepted + writer.speculation.accepted, drafted + writer.speculation.drafted
    assert adaptive or (accepted and drafted > accepted), "right and wrong guesses were to be made"


def test_a_grammar_forces_the_same_tokens_inside_a_guess(native: Model, frame: Frame) -> None:
    """What is forced is the grammar's own spelling, which the policy would not always choose."""
    pytest.importorskip("llguidance")
    manifest = native.manifest
    grammar = TokenGrammar(native.tokenizer.backend, manifest.tokens.eos, manifest.decoder.vocab)
    accepted = 0
    for seed in range(6):
        plain, _, old = conversation(native, frame, Speculation(0), seed, 5, grammar)
        fast, writer, new = conversation(native, frame, Speculation(ngram_min=1, adaptive=False), seed, 5, grammar)
        assert fast == plain
        assert new.usage.forced_tokens == old.usage.forced_tokens > 0
        assert new.usage.generated_tokens == old.usage.generated_tokens
        accepted += writer.speculation.accepted
    assert accepted > 20
