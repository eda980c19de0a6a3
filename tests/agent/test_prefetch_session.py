"""What `Session.anticipate` writes ahead leaves no trace in the conversation that is really said."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.engines.registry import create_engine
from gog_edge.errors import ContextOverflowError, SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.model import Model
from gog_edge.runtime.sequence import shared
from gog_edge.runtime.session import Session
from gog_edge.types import Control, ImagePart, Region, Segment, Text
from tests.runtime.test_session import PROMPT

OPEN: list[Segment] = [Control("<|im_end|>\n<|im_start|>user\n<tool_response>\n"), ImagePart(1)]


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[Model]:
    engine = create_engine("cpu", bundle, OrtOptions(threads=1, spin=False))
    yield Model.assemble(bundle, engine, RunOptions(prefix_cache=False, prefill_chunk=16))
    engine.close()


def begin(model: Model, frame: Frame) -> Session:
    """A session with a prompt about `frame`; a crop of it is registered."""
    session = Session(model)
    session.add_image(frame)
    session.append(PROMPT)
    session.add_image(frame, Region(20, 10, 120, 101), source=0)
    return session


SAID: dict[str, list[Segment]] = {
    "as guessed": [*OPEN, Text("\n1. heron")],
    "going on inside a token": [*OPEN, Text("\n\n\n1. heron")],
    "other wording before the crop": [Control("<|im_end|>\n<|im_start|>user\nNo.\n"), ImagePart(1), Text("x")],
    "without the crop": [Control("<|im_end|>\n<|im_start|>user\nNo.\n")],
    "another picture": [OPEN[0], ImagePart(0), Text("\n1. heron")],
    "the crop alone": OPEN,
}


@pytest.mark.parametrize("said", SAID)
def test_a_guess_changes_neither_tokens_nor_logits(model: Model, frame: Frame, said: str) -> None:
    plain, ahead = begin(model, frame), begin(model, frame)
    for session in (plain, ahead):
        session.extend([7, 8, 9])
    behind, usage = len(ahead), ahead.usage
    waiting = ahead.anticipate([*OPEN, Text("\n1 a")], [*OPEN, Text("\n2 b")], behind)
    assert waiting == len(ahead) > behind
    assert ahead.usage == usage  # counted when it is said
    ahead.run()
    assert ahead.computed == len(ahead)
    counts = [s.append(SAID[said], behind=at) for s, at in ((plain, None), (ahead, behind))]
    assert counts[0] == counts[1] == len(plain) - behind
    assert ahead.tokens.tolist() == plain.tokens.tolist()
    assert np.array_equal(ahead.sequence.positions(0, len(ahead)), plain.sequence.positions(0, len(plain)))
    assert ahead.sequence.delta == plain.sequence.delta
    assert np.allclose(ahead.run(), plain.run(), atol=2e-4)
    assert (ahead.usage.prompt_tokens, ahead.usage.image_tokens) == (
        plain.usage.prompt_tokens,
        plain.usage.image_tokens,
    )


def test_a_longer_guess_goes_on_from_a_shorter_one(model: Model, frame: Frame) -> None:
    plain, ahead = begin(model, frame), begin(model, frame)
    behind, more = len(ahead), [*OPEN, Text("\n1. heron</tool_response>\n<tool_response>")]
    ahead.anticipate([*OPEN, Text("a")], [*OPEN, Text("b")], behind)
    ahead.run()
    first = ahead.computed
    assert ahead.anticipate([*more, Text("a")], [*more, Text("b")], behind) == len(ahead) - first > 0
    ahead.run()
    ahead.append([*more, Text("crane")], behind=behind)
    plain.append([*more, Text("crane")])
    assert ahead.tokens.tolist() == plain.tokens.tolist()
    assert ahead.computed > first
    assert np.allclose(ahead.run(), plain.run(), atol=2e-4)


def test_a_guess_that_is_not_said_can_be_forgotten(model: Model, frame: Frame) -> None:
    session = begin(model, frame)
    before, mark = session.run().copy(), session.mark()
    session.anticipate(OPEN, OPEN, mark.length)
    session.run()
    session.rewind(mark)
    assert len(session) == mark.length
    assert np.allclose(session.run(), before, atol=2e-4)


def test_no_room_for_a_guess_or_for_what_is_said(model: Model, frame: Frame) -> None:
    session = begin(model, frame)
    behind, room = len(session), session.room
    assert session.anticipate(OPEN, OPEN, behind, reserve=room) == 0
    assert len(session) == behind
    session.anticipate(OPEN, OPEN, behind)
    ahead = len(session)
    with pytest.raises(ContextOverflowError, match=f"has {behind} tokens"):
        session.append([Text("long " * 20_000)], behind=behind)
    with pytest.raises(SessionError, match="no image 7"):
        session.append([ImagePart(7)], behind=behind)
    assert len(session) == ahead  # nothing was appended, what was guessed may still be right
    session.append(OPEN, behind=behind)
    assert len(session) == ahead


segments = st.lists(
    st.one_of(
        st.text(alphabet="a1 .\n<|>é✓", max_size=6).map(Text),
        st.sampled_from(["<|im_end|>", "\n", "<tool_response>\n", "</tool_response>"]).map(Control),
        st.sampled_from([0, 1]).map(ImagePart),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(guesses=st.lists(st.tuples(segments, segments), max_size=3), said=segments)
def test_whatever_is_guessed_the_conversation_is_what_is_said(
    model: Model, frame: Frame, guesses: list[tuple[list[Segment], list[Segment]]], said: list[Segment]
) -> None:
    plain, ahead = begin(model, frame), begin(model, frame)
    behind = len(ahead)
    for one, other in [*guesses, (said, said)][: len(guesses) + (len(said) % 2)]:  # a right one last, at times
        ahead.anticipate(one, other, behind)
    ahead.append(said, behind=behind)
    plain.append(said)
    assert ahead.tokens.tolist() == plain.tokens.tolist()
    assert np.array_equal(ahead.sequence.positions(0, len(ahead)), plain.sequence.positions(0, len(plain)))
    assert ahead.sequence.spans == plain.sequence.spans


def test_what_two_ways_of_going_on_share() -> None:
    image = ImagePart(1)
    assert shared([[1, 2], image, [3, 4]], [[1, 2], image, [3, 5, 6]]) == [[1, 2], image, [3]]
    assert shared([[1, 2], image], [[1, 2, 3], image]) == [[1, 2]]
    assert shared([[1, 2], image], [[1, 2], ImagePart(0)]) == [[1, 2]]
    assert shared([[1]], [image]) == shared([[1]], [[2]]) == shared([], [[1]]) == []
