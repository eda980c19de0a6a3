"""Several questions on one frame, saving and resuming, overflow."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from gog_edge.errors import ContextOverflowError, SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Hit, StopReason
from tests.agent.test_loop import ANSWER, GAZE, HERON, TEXT
from tests.runtime.conftest import MakeAgent, picture
from tests.runtime.fakes import FakeProvider


def test_the_second_question_pays_for_its_own_words_only(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([GAZE, ANSWER], [FakeProvider([HERON])], prefix_cache=False)
    with agent.session(frame) as conversation:
        first = conversation.ask("What is it?")
        second = conversation.ask("And what does it eat?")
        image = conversation.session.sequence.spans[0].count
    assert first.usage.encoded_images >= 1
    assert second.usage.encoded_images == 0
    assert second.usage.image_tokens == first.usage.image_tokens - image
    assert second.usage.reused_tokens > image
    assert second.usage.prompt_tokens < first.usage.prompt_tokens - image


def test_asking_the_agent_again_about_the_same_image_reuses_its_kv(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER], prefix_cache=False)
    agent.ask(frame, "one")
    again = agent.ask(Frame(frame.pixels.copy()), "two")  # equal pixels, another object
    assert again.usage.image_tokens == 0
    changed = agent.ask(picture(9), "three")
    assert changed.usage.encoded_images == 1
    assert changed.usage.image_tokens > 0
    assert changed.usage.reused_tokens > 16  # the system prompt


def test_a_changed_pixel_is_another_image(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER])
    agent.ask(frame, "one")
    pixels = frame.pixels.copy()
    pixels[0, 0, 0] ^= 1
    assert agent.ask(Frame(pixels), "one").usage.encoded_images == 1


def test_the_prefix_is_computed_once_per_bundle(make_agent: MakeAgent, frame: Frame, tmp_path: Path) -> None:
    first = make_agent([ANSWER]).ask(frame, "one")
    assert first.usage.reused_tokens == 0
    second = make_agent([ANSWER]).ask(frame, "two")  # another agent: from disk
    assert second.usage.reused_tokens > 50
    for file in (tmp_path / "cache" / "prefixes").glob("*.gogt"):
        file.write_bytes(file.read_bytes()[:-100])
    third = make_agent([ANSWER]).ask(frame, "two")  # damaged: made again
    assert third.usage.reused_tokens == 0
    assert third.text == "fish"
    assert make_agent([ANSWER]).ask(frame, "two").usage.reused_tokens > 50


@pytest.mark.parametrize("kv", [True, False])
def test_resume_goes_on_where_it_stopped(make_agent: MakeAgent, frame: Frame, tmp_path: Path, kv: bool) -> None:
    own = tmp_path / "own.toml"  # boxes count pixels of a size that is not the grid's
    own.write_text(
        'extends = "gog"\nname = "own"\n[limits.image]\nscale_first = true\nmin_pixels = 90000\n'
        "[limits.crop]\nscale_first = true\nmin_pixels = 5000\n"
    )
    make = partial(make_agent, [GAZE, ANSWER], [FakeProvider([HERON])], dialect=str(own))
    with make().session(frame) as conversation:
        conversation.ask("What is it?")
        conversation.save(tmp_path / "c.gogs", kv=kv)
        tokens = conversation.session.tokens.tolist()
        delta = conversation.session.sequence.delta
        computed = conversation.session.computed  # all, or all but the last token where that was no verified guess
    assert computed >= len(tokens) - 1
    with make().resume(tmp_path / "c.gogs") as resumed:
        assert resumed.session.tokens.tolist() == tokens
        assert resumed.session.sequence.delta == delta
        assert resumed.session.computed == (computed if kv else 0)
        for image in resumed.session.sequence.images:
            assert image.plan is not None
            again = image.plan.registered(image.geometry.index, image.geometry.source)
            assert again == image.geometry
        second = resumed.ask("And now?")
    assert second.text == "fish"
    assert second.usage.encoded_images == (1 if kv else 0)  # the crop; without KV its features were saved
    assert second.steps[0].observations[0].shown == 1  # the frame came along: crops can be made


def test_a_session_without_frames_takes_them_from_the_caller(
    make_agent: MakeAgent, frame: Frame, tmp_path: Path
) -> None:
    agent = make_agent([GAZE, ANSWER], [FakeProvider([HERON])])
    with agent.session(frame) as conversation:
        conversation.ask("q")
        conversation.save(tmp_path / "c.gogs", frames=False)
    with pytest.raises(SessionError, match="no pixels here"):
        agent.resume(tmp_path / "c.gogs")
    with pytest.raises(SessionError, match="no pixels here"):
        agent.resume(tmp_path / "c.gogs", picture(5))
    with agent.resume(tmp_path / "c.gogs", frame) as resumed:
        assert resumed.ask("q").text == "fish"


def test_a_question_that_does_not_fit_is_refused(make_agent: MakeAgent, frame: Frame) -> None:
    agent = make_agent([ANSWER], max_context=400)
    with agent.session(frame) as conversation:
        with pytest.raises(ContextOverflowError, match=r"tokens .* of images.*context of 400.*max_context"):
            conversation.ask("word " * 1000)
        assert len(conversation.session) == 0


def test_results_that_do_not_fit_are_shortened_and_it_is_said(make_agent: MakeAgent, frame: Frame) -> None:
    hits = [Hit(f"title {i}", "word " * 60, f"s{i}") for i in range(3)]
    with make_agent([ANSWER]).session(frame) as probe:
        probe.ask("q")
        base = len(probe.session)
    for extra, kept in ((330, 1), (160, 0)):
        trace = Trace()
        agent = make_agent([TEXT, ANSWER], [FakeProvider(hits)], max_context=base + 90 + extra, answer_reserve=16)
        answer = agent.ask(frame, "q", trace=trace)
        given = answer.steps[0].observations[0]
        assert len(given.hits) == kept, (trace.notes, len(given.hits))
        assert any("shortened" in text for _, text in trace.notes)
        if not kept:
            assert "do not fit" in given.error
        assert answer.stop in (StopReason.ANSWERED, StopReason.FORCED)


def test_trace_tells_everything_and_no_secret(
    make_agent: MakeAgent, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPAPI_KEY", "sk-very-secret-123")
    leak = Hit("Heron", "see https://u:pw@x.org/a?api_key=abc123&q=1 sk-very-secret-123", "https://x.org/?token=zzz")
    trace = Trace()
    make_agent([GAZE, ANSWER], [FakeProvider([leak])]).ask(frame, "q", trace=trace)
    import json

    data = trace.to_json()
    text = json.dumps(data)
    for secret in ("sk-very-secret-123", "abc123", "u:pw", "zzz"):
        assert secret not in text
    stages = {s["stage"] for s in data["spans"]}
    assert {"crop", "encode", "prefill", "decode", "search", "wait", "parse"} <= stages
    assert len(data["images"]) == 2
    assert "".join(t["text"] for t in data["tokens"]) == GAZE + ANSWER
    thumb = trace.thumbnail(1)
    assert thumb is not None and thumb[:2] == b"\xff\xd8"
    assert trace.thumbnail(7) is None
