"""What dora's and ROS's nodes share: pictures in memory, whose turn it is, when the newest picture is taken."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gog_edge.agent.camera.newest import newest_answers
from gog_edge.deadline import Budget, DeadlineReached
from gog_edge.errors import CancelledError, ContextOverflowError, ImageError
from gog_edge.image.frame import Frame
from gog_edge.integrations.asking import answers
from gog_edge.integrations.inbox import Inbox
from gog_edge.integrations.pixels import frame_of_pixels
from gog_edge.integrations.ros2 import Gate, Progress, Turns, frame_of_file, frame_of_image, gathered
from gog_edge.types import Answer, StopReason

FRAME = Frame(np.zeros((4, 6, 3), np.uint8))


def rows(*shape: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("encoding", "code"), [("yuv422", "COLOR_YUV2RGB_UYVY"), ("yuv422_yuy2", "COLOR_YUV2RGB_YUY2")]
)
def test_yuv_is_read_as_opencv_reads_it(encoding: str, code: str) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    data = rows(24, 32, 2)
    wanted = cv2.cvtColor(data, getattr(cv2, code))
    found = frame_of_pixels(data.reshape(-1), encoding, 32, 24).pixels
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_rows_may_have_padding(channels: int) -> None:
    encoding = {1: "mono8", 3: "rgb8", 4: "rgba8"}[channels]
    padded = rows(5, 7 * channels + 9)
    inner = np.ascontiguousarray(padded[:, : 7 * channels])
    tight = frame_of_pixels(inner.reshape(-1), encoding, 7, 5)
    assert frame_of_pixels(padded.reshape(-1), encoding, 7, 5, 7 * channels + 9) == tight
    # the last row needs no padding, and what follows it is not read
    assert frame_of_pixels(padded.reshape(-1)[:-9], encoding, 7, 5, 7 * channels + 9) == tight
    assert frame_of_pixels(inner.reshape(-1), encoding, 7, 5, 7 * channels) == tight


@pytest.mark.parametrize(
    ("encoding", "width", "height", "step", "message"),
    [
        ("bayer_rggb8", 4, 4, 4, "encoding 'bayer_rggb8' is not known: send rgb8, bgr8"),
        ("", 4, 4, 4, "encoding '' is not known"),
        ("rgb8", 0, 4, 0, "a rgb8 picture of 0x4: it needs pixels"),
        ("yuv422", 3, 4, 6, "a yuv422 picture of 3x4: it needs pixels of an even width"),
        ("rgb8", 4, 4, 11, "has rows of 12 bytes or more, not 11"),
        ("rgb8", 4, 4, 12, "has 48 bytes, not 20"),
        ("rgb8", 4, 4, 1 << 31, "has 6442450956 bytes, not 20"),
        ("rgb8", 1 << 31, 1 << 31, 1 << 34, "bytes, not 20"),
    ],
)
def test_sizes_that_contradict_each_other(encoding: str, width: int, height: int, step: int, message: str) -> None:
    image = SimpleNamespace(encoding=encoding, width=width, height=height, step=step, data=bytes(20))
    with pytest.raises(ImageError) as caught:
        frame_of_image(image)
    assert message in str(caught.value)


def test_a_format_is_named_in_one_line() -> None:
    with pytest.raises(ImageError) as caught:
        frame_of_file(SimpleNamespace(format="h264\n\x1b[31m", data=b"\x00\x00\x00\x01"))
    assert str(caught.value).isprintable() and "its format is 'h264" in str(caught.value)


def test_goals_go_before_pictures() -> None:
    turns, order, begun = Turns(), [], threading.Event()

    def take(name: str, goal: bool) -> None:
        with turns.taken(Budget(), goal=goal):
            order.append(name)

    with turns.taken(Budget(), goal=False):
        threads = [
            threading.Thread(target=take, args=("picture", False)),
            threading.Thread(target=take, args=("goal", True)),
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        begun.set()
    for thread in threads:
        thread.join(10)
    assert order == ["goal", "picture"]


def test_waiting_for_a_turn_ends_with_the_budget() -> None:
    turns = Turns()
    with turns.taken(Budget(), goal=False):
        cancelled = Budget()
        threading.Timer(0.1, cancelled.cancel).start()
        with pytest.raises(CancelledError), turns.taken(cancelled, goal=True):
            pass
        with pytest.raises(DeadlineReached), Budget(0.1) as late, turns.taken(late, goal=True):
            pass
    with turns.taken(Budget(), goal=False):  # those that gave up hold nobody back
        pass


def test_what_is_asked_about_after_a_goal_is_the_newest_picture_then() -> None:
    inbox, turns = Inbox("q"), Turns()
    gate = Gate(inbox, turns)
    inbox.picture(lambda: FRAME, "old")
    seen: list[Any] = []
    with turns.taken(Budget(), goal=True):
        thread = threading.Thread(target=lambda: seen.append(gate.newest(-1)))
        thread.start()
        time.sleep(0.1)
        inbox.picture(lambda: FRAME, "new")
        assert not seen
    thread.join(10)
    assert seen[0].content.header == "new"
    gate.end()
    assert gate.newest(1) is None


def test_a_rate_is_kept() -> None:
    inbox = Inbox("q")
    gate = Gate(inbox, Turns())
    gate.rate = 10.0
    times: list[float] = []

    def answer(taken: Any, left: float) -> None:
        times.append(time.monotonic())
        inbox.picture(lambda: FRAME)
        if len(times) == 4:
            gate.end()

    inbox.picture(lambda: FRAME)
    list(newest_answers(gate, answer, 1e9, time.monotonic))
    assert len(times) == 4 and all(b - a >= 0.095 for a, b in pairwise(times))


def test_a_question_that_is_too_long_ends_nothing() -> None:
    inbox = Inbox("a long one")
    inbox.picture(lambda: FRAME)
    asked: list[str] = []

    def ask(frame: Frame, question: str, seconds: float | None) -> Answer:
        asked.append(question)
        if len(asked) == 1:
            raise ContextOverflowError("the question has 9 tokens,\n8 fit")
        inbox.end()
        return Answer("yes", StopReason.ANSWERED)

    said = answers(inbox, ask, None)
    assert next(said).plain()["error"] == "the question has 9 tokens, 8 fit"
    inbox.question("short")
    assert [one.plain()["answer"] for one in said] == ["yes"] and asked == ["a long one", "short"]


def test_tokens_are_gathered_and_nothing_else_is() -> None:
    clock = iter(x / 100 for x in range(1000))
    steps = [Progress(1, "token", str(n % 10)) for n in range(30)]
    steps += [Progress(1, "call", "gaze"), Progress(2, "token", "a"), Progress(2, "call", "glance")]
    found = list(gathered(iter(steps), lambda: next(clock)))
    assert [one for one in found if one.kind == "call"] == [steps[30], steps[32]]
    tokens = [one for one in found if one.kind == "token"]
    assert "".join(one.text for one in tokens) == "0123456789" * 3 + "a" and 2 < len(tokens) < 8
    assert found[-2:] == steps[-2:]
