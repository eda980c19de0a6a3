"""Sessions of policies with recurrent layers: wherever they go back to, the next logits are those of a session that
never went anywhere else, and what stays is not read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.base import DecoderInputs
from gog_edge.engines.registry import create_engine
from gog_edge.errors import EngineError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.session_state import load_session, save_session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, Segment, Text
from tests.native.graphs import needs_ops
from tests.runtime.fakes import make_bundle
from tests.versions import need_hybrid

OPENING = Control("<|im_start|>system\nYou answer with the title of the page and with nothing else.<|im_end|>\n")
LONG = "which page is it and what is the title of the source with the result of the search for the image " * 3


@pytest.fixture(scope="module", params=["ort", "portable", pytest.param("native", marks=needs_ops)])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    need_hybrid(request.param)
    return make_bundle(tmp_path_factory.mktemp("hybrid"), "tiny-qwen3.5", request.param)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Any]:
    engine = create_engine("cpu", bundle)
    yield engine
    engine.close()


@pytest.fixture
def model(bundle: Bundle, engine: Any, tmp_path: Path) -> Model:
    return Model.assemble(bundle, engine, RunOptions(cache_dir=tmp_path / "cache", prefill_chunk=32))


@pytest.fixture
def runs(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tokens before, tokens of) every run of the decoder."""
    seen: list[tuple[int, int]] = []
    real = engine.decoder.run

    def run(inputs: DecoderInputs, cache: Any, past: int, *rest: Any) -> Any:
        seen.append((past, len(inputs.embeds)))
        return real(inputs, cache, past, *rest)

    monkeypatch.setattr(engine.decoder, "run", run)
    return seen


def ask(question: str, image: int | None = None) -> list[Segment]:
    shown: list[Segment] = [] if image is None else [ImagePart(image)]
    return [
        OPENING,
        Control("<|im_start|>user\n"),
        *shown,
        Text(question),
        Control("<|im_end|>\n<|im_start|>assistant\n"),
    ]


def write(session: Session, count: int) -> None:
    for _ in range(count):
        session.extend([int(session.run()[0].argmax())])


def check(session: Session) -> None:
    """The next logits, and the state, against a session that reads the same from the start."""
    fresh, old = Session(session.model), session.sequence
    fresh.sequence.images = old.images
    at = 0
    for span in old.spans:
        fresh.sequence.append_ids(old.ids[at : span.start].tolist(), written=old.written[at : span.start])
        fresh.sequence.append_image(span.rows, span.columns, span.image)
        at = span.stop
    fresh.sequence.append_ids(old.ids[at:].tolist(), written=old.written[at:])
    want = fresh.run()[0].copy()
    got = session.run()[0]
    mine, other = session._cache, fresh._cache
    assert mine.seen == other.seen == len(session)  # type: ignore[union-attr]
    if session.model.rows_independent:
        assert np.array_equal(got, want)
        return
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    for a, b in zip(mine.state(), other.state()):  # type: ignore[union-attr]
        assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


def test_going_back_to_a_mark(model: Model, runs: list[tuple[int, int]]) -> None:
    session = Session(model)
    session.append(ask("who is it?"))
    session.run()
    mark = session.mark()
    write(session, 12)
    session.rewind(mark)
    runs.clear()
    session.run()
    assert runs == []  # what is known of the mark is enough
    session.append([Text("and where?")])
    session.run()
    assert runs[0][0] == mark.length  # nothing before it is read again
    check(session)


def test_a_cut_anywhere(model: Model) -> None:
    session = Session(model)
    session.append(ask(LONG))
    write(session, 20)
    for length in (len(session) - 3, len(session) - 30, 40, 33, 32, 31, 5, 1):
        session.cut(length)
        session.append([Text("the score")])
        check(session)


def test_a_cut_without_more_is_run_again(model: Model) -> None:
    session = Session(model)
    session.append(ask(LONG))
    write(session, 5)
    session.run()
    session.cut(len(session) - 2)
    check(session)


def test_another_question_about_the_same_picture(model: Model, frame: Frame, runs: list[tuple[int, int]]) -> None:
    session = Session(model)
    plans = [model.vision.plan(frame)]
    session.restart(plans, ask("who is it?", 0))
    write(session, 9)
    stop = session.sequence.spans[0].stop
    runs.clear()
    kept = session.restart(plans, ask("where is it?", 0))
    assert kept > stop
    write(session, 1)
    assert stop < runs[0][0] <= kept  # the picture and its end marker are not read again
    check(session)


def test_a_picture_in_a_later_turn(model: Model, frame: Frame) -> None:
    session = Session(model)
    session.append(ask(LONG))
    write(session, 7)
    mark = session.mark()
    image = session.add_image(frame)
    session.append([ImagePart(image.index), Text("what is this?")])
    write(session, 4)
    check(session)
    session.rewind(mark)
    session.append([Text("no picture then")])
    check(session)


def test_saved_and_resumed(model: Model, frame: Frame, tmp_path: Path) -> None:
    session = Session(model)
    session.add_image(frame)
    session.append(ask("who is it?", 0))
    write(session, 6)
    for kv in (True, False):
        path = save_session(session, tmp_path / f"s{kv}", kv=kv)
        again, _ = load_session(path, model)
        assert np.abs(again.run()[0] - session.run()[0]).max() < 1e-4 * np.abs(session.run()[0]).max()
        write(again, 3)
        check(again)
        again.cut(len(session))
        again.append([Text("and then")])
        check(again)


def test_saved_after_a_wrong_guess(model: Model, tmp_path: Path) -> None:
    session = Session(model)
    session.append(ask(LONG))
    write(session, 3)
    session.run([1, 2, 3])
    path = save_session(session, tmp_path / "s")
    again, _ = load_session(path, model)
    check(again)


def test_guesses_right_and_wrong(model: Model) -> None:
    session = Session(model)
    session.append(ask(LONG))
    write(session, 4)
    first = int(session.run()[0].argmax())
    session.extend([first])
    rows = session.run([5, 6, 7]).copy()  # whatever is right: one token of the guess is taken, two are not
    session.accept(1)
    assert np.array_equal(session.run()[0], rows[1])
    session.append([Text("so")])
    check(session)
    session.run([8, 9])
    session.accept(2)
    session.append([Text("more")])
    check(session)


def test_what_was_read_ahead_in_vain(model: Model) -> None:
    session = Session(model)
    session.append(ask("who is it?"))
    write(session, 8)
    behind = len(session)
    one, other = ([Text("the result is a page of the source " + end)] for end in ("one", "two"))
    assert session.anticipate(one, other, behind)
    session.run()
    session.append([Text("no result")], behind=behind)
    check(session)


def test_the_system_prompt_from_the_cache(model: Model, runs: list[tuple[int, int]]) -> None:
    first = Session(model)
    first.append(ask("who is it?"))
    first.run()
    runs.clear()
    second = Session(model)
    second.append(ask("where is it?"))
    assert second.usage.reused_tokens > 15
    second.run()
    assert runs[0][0] == second.usage.reused_tokens
    check(second)
    second.cut(second.usage.reused_tokens + 2)
    second.append([Text("another one")])
    check(second)


@pytest.mark.parametrize("more", ["", LONG])
def test_an_interrupted_run_leaves_no_half_state(
    bundle: Bundle, engine: Any, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(Model.assemble(bundle, engine, RunOptions(prefix_cache=False)))
    session.append(ask("who is it?"))
    write(session, 5)
    session.append([Text(more)])
    graph = engine.decoder._graph
    real = graph.session

    class Interrupted:
        def io_binding(self) -> Any:
            return real.io_binding()

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            real.run_with_iobinding(binding, options)  # everything is written, and still it did not end well
            raise RuntimeError("terminated")

    with monkeypatch.context() as patch:
        patch.setattr(graph, "session", Interrupted())
        with pytest.raises(EngineError, match="terminated"):
            session.run()
    check(session)


def test_a_run_where_the_state_is_not_is_refused(model: Model) -> None:
    session = Session(model)
    session.append(ask("who is it?"))
    session.run()
    cache: Any = session._cache
    ids, places = session.tokens[:2], session.sequence.positions(0, 2)
    with pytest.raises(EngineError, match="the recurrent state is that after"):
        model.decoder.forward(cache, 1, ids, places)


def test_guesses_only_where_they_can_be_taken_back(model: Model) -> None:
    words = "the page the page the page the page the page"
    plain, guessing = Session(model), Session(model)
    plain.append(ask(words))
    write(plain, 40)
    guessing.append(ask(words))
    writer = TurnWriter(guessing, Sampler(Sampling()), Speculation(adaptive=False, ngram_min=1))
    list(writer.turn(TurnOptions(40, ())))
    assert guessing.tokens.tolist() == plain.tokens.tolist()
    assert (writer.speculation.drafted > 0) == model.rows_independent
