"""Sessions on real (tiny, random) graphs: chunks, images across borders, rewinding, several images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.base import Engine
from gog_edge.engines.ort import cache as ort_cache
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import ContextOverflowError, EngineError, SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, PixelLimits, Region, Segment, Text
from tests.runtime.conftest import picture
from tests.versions import needs_portable

PROMPT: list[Segment] = [
    Control("<|im_start|>system\nyou are a tool of search<|im_end|>\n<|im_start|>user\n"),
    ImagePart(0),
    Text("what is it<|im_end|>?"),
    Control("<|im_end|>\n<|im_start|>assistant\n"),
]


@pytest.fixture(scope="module", params=["qwen3", "qwen2.5"])
def loaded(request: pytest.FixtureRequest, bundle: Bundle, bundle25: Bundle) -> Iterator[tuple[Bundle, Engine]]:
    chosen = bundle if request.param == "qwen3" else bundle25
    engine = create_engine("cpu", chosen, OrtOptions(threads=1, spin=False))
    yield chosen, engine
    engine.close()


Loaded = tuple[Bundle, Engine]


def model(loaded: Loaded, *, chunk: int = 512, **rest: object) -> Model:
    options = RunOptions(prefill_chunk=chunk, prefix_cache=False, **rest)  # type: ignore[arg-type]
    return Model.assemble(loaded[0], loaded[1], options)


def start(loaded: Loaded, frame: Frame, *, chunk: int = 512, **rest: object) -> Session:
    session = Session(model(loaded, chunk=chunk, **rest))
    session.add_image(frame)
    session.append(PROMPT)
    return session


def write(session: Session, count: int, *, guesses: int = 0) -> list[int]:
    writer = TurnWriter(session, Sampler(Sampling()), Speculation(max_draft=guesses, adaptive=False))
    result = TurnResult()
    list(writer.turn(TurnOptions(count, ()), None, result))
    return result.ids


def test_one_image_span_and_no_control_token_from_the_question(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    special = loaded[0].manifest.tokens
    tokens = session.tokens.tolist()
    (span,) = session.sequence.spans
    assert tokens.count(special.image_pad) == span.count
    assert tokens[span.start - 1] == special.vision_start
    assert tokens[span.stop] == special.vision_end
    assert tokens.count(session.model.tokenizer.special["<|im_end|>"]) == 2


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_do_not_change_the_logits_even_inside_an_image(loaded: Loaded, frame: Frame, chunk: int) -> None:
    whole, parts = start(loaded, frame), start(loaded, frame, chunk=chunk)
    assert np.allclose(whole.run(), parts.run(), atol=2e-4)
    assert write(whole, 24) == write(parts, 24)


def test_guessing_does_not_change_what_is_written(loaded: Loaded, frame: Frame) -> None:
    plain, fast = start(loaded, frame), start(loaded, frame)
    assert write(plain, 96) == write(fast, 96, guesses=6)
    assert plain.tokens.tolist() == fast.tokens.tolist()
    assert plain.sequence.delta == fast.sequence.delta


def test_decode_positions_go_on_from_the_mrope_delta(loaded: Loaded, frame: Frame) -> None:
    """One token at a time gives the same as all at once: positions, deepstack and cache agree in both."""
    session = start(loaded, frame)
    ids = write(session, 12)
    again = start(loaded, frame)
    again.extend(ids)
    once = again.run()
    session.run()
    assert np.allclose(session.run(), once, atol=2e-4)
    assert session.sequence.delta < -1


def test_a_second_image_after_decoding(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    first = write(session, 8)
    crop = session.add_image(frame, Region(20, 10, 120, 101), source=0)
    assert (crop.index, crop.source, crop.region) == (1, 0, Region(20, 10, 120, 101))
    more: list[Segment] = [Control("<|im_end|>\n<|im_start|>user\n"), ImagePart(1), Control("<|im_start|>assistant\n")]
    session.append(more)
    stepwise = session.run().copy()
    fresh = start(loaded, frame)
    fresh.extend(first)
    fresh.add_image(frame, Region(20, 10, 120, 101), source=0)
    fresh.append(more)
    assert np.allclose(fresh.run(), stepwise, atol=2e-4)
    assert session.usage.encoded_images == 2


def test_rewind_forgets_exactly_what_came_after(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    before = session.run().copy()
    mark = session.mark()
    first = write(session, 10)
    session.add_image(picture(4))
    session.append([ImagePart(1), Text("more")])
    session.run()
    session.rewind(mark)
    assert len(session) == mark.length
    assert len(session.images) == 1
    assert np.allclose(session.run(), before, atol=2e-4)
    assert write(session, 10) == first


def test_a_mark_is_void_once_the_conversation_was_cut_before_it(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    early = session.mark()
    session.append([Text("a b c d e f")])
    late = session.mark()
    session.rewind(early)
    session.append([Text("something else that is longer than before")])
    with pytest.raises(SessionError, match="void"):
        session.rewind(late)
    session.rewind(early)


def test_an_image_can_not_be_cut_in_two(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    with pytest.raises(SessionError, match="inside image 0"):
        session.cut(session.sequence.spans[0].start + 1)


def test_drafts_are_tried_not_appended(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    expected = write(start(loaded, frame), 4)
    session.extend([expected[0]])
    session.run()
    wrong = (expected[1] + 1) % 200
    session.extend([expected[1]])
    logits = session.run([expected[2], wrong])
    assert len(session) == len(session.tokens)
    assert int(logits[0].argmax()) == expected[2]
    assert int(logits[1].argmax()) == expected[3]
    session.accept(1)
    with pytest.raises(SessionError, match="can't be accepted"):
        session.accept(2)
    session.extend([expected[3]])
    assert session.tokens.tolist()[-4:] == expected
    with pytest.raises(SessionError, match="can't be accepted"):
        session.accept(1)


def test_overflow_is_refused_before_anything_is_appended(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame, max_context=200)
    length, room = len(session), session.room
    assert room == 200 - length
    with pytest.raises(ContextOverflowError, match=rf"has {length} tokens; .* more exceed the context of 200"):
        session.append([Text("long " * 300)])
    session.add_image(picture(3, 900, 900))
    with pytest.raises(ContextOverflowError, match="of images"):
        session.append([ImagePart(1)])
    with pytest.raises(ContextOverflowError, match="kept for the answer"):
        session.append([Text("a")], reserve=room)
    with pytest.raises(ContextOverflowError):
        session.extend([1] * (room + 1))
    assert len(session) == length
    session.run()
    assert len(write(session, 1000)) == room  # generation stops at the border


@pytest.mark.parametrize(("kv", "frames"), [(True, True), (True, False), (False, True), (False, False)])
def test_saved_sessions_go_on_with_the_same_tokens(
    loaded: Loaded, frame: Frame, tmp_path: Path, kv: bool, frames: bool
) -> None:
    session = start(loaded, frame)
    session.add_image(frame, Region(0, 0, 80, 90), source=0, limits=PixelLimits(0, 30_000))
    session.append([ImagePart(1)])
    write(session, 6)
    logits = session.run().copy()
    path = save_session(session, tmp_path / "s.gogs", kv=kv, frames=frames, extra={"note": "é"})
    loaded_again, extra = load_session(path, model(loaded))
    assert extra == {"note": "é"}
    assert loaded_again.images == session.images
    assert loaded_again.tokens.tolist() == session.tokens.tolist()
    if kv:
        assert (loaded_again.run() == logits).all()
    assert np.allclose(loaded_again.run(), logits, atol=2e-4)
    assert write(loaded_again, 20) == write(session, 20)
    if frames:
        assert loaded_again.frame(1) == frame
    else:
        with pytest.raises(SessionError, match="no pixels here"):
            loaded_again.frame(0)


def test_restart_keeps_what_both_conversations_share(loaded: Loaded, frame: Frame) -> None:
    session = start(loaded, frame)
    write(session, 5)
    plan = session.model.vision.plan(frame)
    other: list[Segment] = [*PROMPT[:2], Text("who is this"), PROMPT[3]]
    kept = session.restart([plan], other)
    assert kept == session.sequence.spans[0].stop + 1
    fresh = Session(session.model)
    fresh.add_image(frame)
    fresh.append(other)
    assert session.tokens.tolist() == fresh.tokens.tolist()
    assert np.allclose(session.run(), fresh.run(), atol=2e-4)
    assert session.usage.encoded_images == 1
    changed = session.restart([session.model.vision.plan(picture(8))], other)
    assert changed == session.sequence.spans[0].start - 1
    with pytest.raises(SessionError, match="no image 0"):
        session.restart([], other)
    with pytest.raises(ContextOverflowError):
        session.restart([plan], [*PROMPT, Text("x " * 5000)])


def test_errors_name_the_thing(loaded: Loaded, frame: Frame) -> None:
    session = Session(model(loaded))
    with pytest.raises(SessionError, match="empty"):
        session.run()
    with pytest.raises(SessionError, match="no image 0"):
        session.append([ImagePart(0)])
    assert len(session) == 0
    session.append([Text("a")])
    with pytest.raises(EngineError, match="asked for"):
        session.model.decoder.forward(
            session.model.decoder.new_cache(4), 0, np.zeros(1, np.int32), np.zeros((3, 1), np.int32), last_k=3
        )


def test_the_cache_grows_by_doubling_and_keeps_its_rows(loaded: Loaded, frame: Frame) -> None:
    engine = create_engine("cpu", loaded[0], OrtOptions(threads=1, spin=False, initial_context=16))
    small = start((loaded[0], engine), frame)
    big = start(loaded, frame)
    capacities = set()
    for _ in range(30):
        ids = [5, 9, 2, 7, 30, 41, 17, 8]
        small.extend(ids)
        big.extend(ids)
        assert np.allclose(small.run(), big.run(), atol=2e-4)
        assert small._cache is not None
        capacities.add(small._cache.capacity)
    assert len(capacities) <= 4
    assert all(c % 64 == 0 for c in capacities)


def test_where_address_space_is_short_a_cache_begins_small(
    loaded: Loaded, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = ort_cache._zeros

    def limited(shape: tuple[int, ...], dtype: object) -> object:
        if shape[2] > 1024:
            raise OSError(12, "Cannot allocate memory")
        return zeros(shape, dtype)

    monkeypatch.setattr(ort_cache, "_zeros", limited)
    engine = create_engine("cpu", loaded[0], OrtOptions(threads=1, spin=False, initial_context=2048))
    session = start((loaded[0], engine), frame)
    session.run()
    assert session._cache is not None and session._cache.capacity == 1024
    with pytest.raises(EngineError, match="no memory for a KV cache of 2048 tokens"):
        session._cache.reserve(1025, 0)


@needs_portable
def test_guessing_is_off_where_rows_depend_on_each_other(frame: Frame, tmp_path: Path) -> None:
    """ONNX Runtime's attention adds in an order that follows the number of rows, its int8 without blocks quantises a
    whole run with one scale; native operators do neither."""
    import dataclasses

    from gog_edge.agent.agent import Agent
    from gog_edge.agent.loader import bundle_dialect
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle
    from gog_edge.export.quantize.recipe import Recipe
    from gog_edge.export.synthetic.checkpoint import make_checkpoint
    from gog_edge.runtime.telemetry import Trace

    checkpoint = make_checkpoint("tiny-qwen3-vl", tmp_path / "checkpoint", dtype="float32")
    recipe = Recipe.for_precision("int8")
    plain = dataclasses.replace(recipe, **{r: dataclasses.replace(recipe.mlp, block=0) for r in ("mlp", "attention")})
    found = {}
    for name, options in (
        ("dynamic", ExportOptions(precision="int8", recipe=plain)),
        ("blocks", ExportOptions(precision="int4")),
        ("fp32", ExportOptions(precision="fp32")),
        ("portable", ExportOptions(precision="fp32", backend="portable")),
        ("native", ExportOptions(precision="int4", backend="native")),
    ):
        exported = export_bundle(checkpoint, tmp_path / name, options)
        engine = create_engine("cpu", exported, OrtOptions(threads=1, spin=False))
        made = model((exported, engine))
        found[name] = made.rows_independent
        for exact in (True, False):
            trace = Trace()
            options = RunOptions(
                grammar="off",
                cache_dir=tmp_path,
                turn_tokens=60,
                max_turns=1,
                exact=exact,
                speculation=Speculation(adaptive=False, ngram_min=1),
            )
            Agent(made, bundle_dialect(exported), (), options).ask(frame, "q", trace=trace)
            guessed = found[name] or not exact
            assert (trace.meta["speculation"]["drafted"] > 0) == guessed, (name, exact)
            noted = any("no tokens are guessed" in text for _, text in trace.notes)
            assert noted != guessed
        engine.close()
    assert found == {"dynamic": False, "blocks": False, "fp32": False, "portable": False, "native": True}
