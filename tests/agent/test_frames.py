"""A question's images: decoded under its deadline and limits, and let go when it ends, without the collector's help."""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from gog_edge.agent.agent import Agent
from gog_edge.agent.dispatch import run_in_thread
from gog_edge.agent.frames import open_frames
from gog_edge.cli.main import cli
from gog_edge.deadline import Budget
from gog_edge.errors import GogEdgeError, ImageError
from gog_edge.image import decode
from gog_edge.image.frame import DEFAULT_LIMITS, Frame, ImageLimits
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import AnswerEvent, StopReason, TokenEvent
from tests.agent.test_loop import ANSWER, GAZE, HERON
from tests.agent.virtual_clock import VirtualClock
from tests.runtime.conftest import MakeAgent, picture
from tests.runtime.fakes import FakeProvider


def png(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, clock: VirtualClock) -> None:
    """Decoding takes three seconds and can't be interrupted."""
    real = decode.decode_bytes

    def decode_bytes(*args: Any) -> NDArray[np.uint8]:
        clock.sleep(3.0)
        return real(*args)

    monkeypatch.setattr(decode, "decode_bytes", decode_bytes)


@pytest.mark.usefixtures("slow")
def test_the_deadline_holds_while_an_image_is_decoded(make_agent: MakeAgent, clock: VirtualClock) -> None:
    agent, trace = make_agent([ANSWER]), Trace()
    answer = agent.ask(png(), "q", deadline=0.5, budget=Budget(clock=clock), trace=trace)
    assert (answer.text, answer.stop, answer.seconds, clock.now()) == ("", StopReason.DEADLINE, 0.5, 0.5)
    assert trace.answer == answer
    in_time = agent.ask(png(), "q", deadline=60.0, budget=Budget(clock=clock))
    assert in_time.stop is StopReason.ANSWERED


@pytest.mark.usefixtures("slow")
def test_a_question_is_cancelled_while_its_image_is_decoded(make_agent: MakeAgent, clock: VirtualClock) -> None:
    budget = Budget(clock=clock)
    clock.later(1.0, budget.cancel)
    (event,) = make_agent([ANSWER]).stream(png(), "q", budget=budget)
    assert isinstance(event, AnswerEvent)
    assert (event.answer.stop, clock.now()) == (StopReason.CANCELLED, 1.0)


def test_limits_are_options(make_agent: MakeAgent, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for limits in (ImageLimits(max_pixels=64 * 47), ImageLimits(memory=64 * 48 * 8 - 1), ImageLimits(max_bytes=20)):
        agent = make_agent([ANSWER, ANSWER, ANSWER], pictures=limits)
        for ask in (agent.ask, agent.session):
            with pytest.raises(ImageError, match=r"raise ImageLimits\.(max_pixels|memory|max_bytes)"):
                ask(path, *(["q"] if ask == agent.ask else []))
        assert agent.ask(Frame.open(path), "q").text  # a frame is there already
    assert open_frames([png(), picture(0)], DEFAULT_LIMITS)[1].width == 203


@pytest.mark.parametrize(
    "option",
    [("--image-pixels", "3000"), ("--image-memory", "20 KiB"), ("--image-bytes", "30"), ("--image-memory", "0")],
)
def test_limits_are_options_of_the_command(option: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    args = ["ask", str(tmp_path / "a.png"), "q", "--bundle", str(tmp_path / "none"), *option]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code != 0
    message = str(result.exception) + result.output
    assert "million pixels" in message or "of memory" in message or "more than" in message or "is nothing" in message
    others = (["serve"], ["watch"], ["eval"], ["mcp"], ["index", "build"], ["index", "add"], ["index", "search"])
    assert all(option[0] in CliRunner().invoke(cli, [*other, "--help"]).output for other in others)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


Ask = Callable[[Agent, Frame], object]


def within(seconds: float) -> Ask:
    return lambda agent, frame: agent.ask(frame, "q", deadline=seconds)


def cancelled(agent: Agent, frame: Frame) -> None:
    budget = Budget()
    budget.cancel()
    assert agent.ask(frame, "q", budget=budget).stop is StopReason.CANCELLED


def left(agent: Agent, frame: Frame) -> None:
    """Cancelled in the middle, and the stream is closed."""
    budget = Budget()
    events = agent.stream(frame, "q", budget=budget)
    next(event for event in events if isinstance(event, TokenEvent))
    budget.cancel()
    assert isinstance(list(events)[-1], AnswerEvent)


def closed(agent: Agent, frame: Frame) -> None:
    events = agent.stream(frame, "q")
    next(event for event in events if isinstance(event, TokenEvent))
    events.close()  # type: ignore[attr-defined]


# There a closed generator's exception leads back to the frame of contextlib that holds it, until the collector comes.
no_circles = pytest.mark.skipif(sys.version_info < (3, 11), reason="contextlib of Python 3.10 leaves a circle")


def refused(agent: Agent, frame: Frame) -> None:
    with pytest.raises(GogEdgeError):
        agent.ask([frame] * 999, "q")


def ended(provider: FakeProvider) -> None:
    """Searches that were started early are over, and what they were asked is forgotten."""
    for thread in threading.enumerate():
        if thread.name.startswith(("gog-search", "gog-encode")):
            thread.join(60)
    provider.asked.clear()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "ask", [within(0.001), within(0.3), cancelled, left, pytest.param(closed, marks=no_circles), refused]
)
def test_frames_are_let_go_without_the_collector(make_agent: MakeAgent, ask: Ask) -> None:
    """An error in a future whose traceback leads back to the future kept frames until the collector came."""
    provider = FakeProvider([HERON], wait_s=0.05)
    agent = make_agent([GAZE, ANSWER] * 8, [provider], step_s=0.01, encode_s=0.2, keep_sessions=0)
    kept = []
    for seed in range(3):
        frame = picture(seed)
        kept.append(weakref.ref(frame))
        ask(agent, frame)
        del frame
    ended(provider)
    assert [ref() for ref in kept] == [None, None, None]


@pytest.mark.usefixtures("no_collector")
def test_a_decoder_that_was_left_behind_keeps_nothing(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Frame]] = []
    real = Frame.open.__func__  # type: ignore[attr-defined]

    def opened(cls: type[Frame], *args: Any, **rest: Any) -> Frame:
        frame: Frame = real(cls, *args, **rest)
        made.append(weakref.ref(frame))
        return frame

    monkeypatch.setattr(Frame, "open", classmethod(opened))
    agent = make_agent([ANSWER], keep_sessions=0)
    with pytest.raises(ImageError):
        agent.ask([png(), b"rubbish"], "q")
    assert agent.ask(png(), "q").text
    assert len(made) == 2
    assert [ref() for ref in made] == [None, None]


class Thing:
    """Something that can be watched going away."""


@pytest.mark.usefixtures("no_collector")
def test_a_thread_that_failed_keeps_nothing() -> None:
    made: list[weakref.ref[Thing]] = []

    def work() -> None:
        thing = Thing()
        made.append(weakref.ref(thing))
        raise ValueError("no")

    future = run_in_thread(work, "search-thing")
    assert isinstance(future.exception(60), ValueError)
    del future
    for thread in threading.enumerate():
        if thread.name == "gog-search-thing":
            thread.join(60)
    assert made[0]() is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_that_nobody_waits_for_any_more_ends_in_silence(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    uncaught: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    go = threading.Event()

    def work() -> int:
        assert go.wait(60)
        if fails:
            raise ValueError("no")
        return 3

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.01)

    future = run_in_thread(work, "late-thing")
    asyncio.run(give_up())
    go.set()
    for thread in threading.enumerate():
        if thread.name == "gog-late-thing":
            thread.join(60)
    assert uncaught == [] and future.done()
