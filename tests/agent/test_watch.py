"""Watching: a video file made here, iterators, an RTSP and an HTTP camera that die and come back; real captures."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gog_edge.agent.camera import reader as frame_reader
from gog_edge.agent.camera.newest import Taken, cut_of, newest_answers
from gog_edge.agent.camera.watch import Sighting
from gog_edge.errors import CameraError, ImageError, UsageError
from gog_edge.image.frame import Frame, ImageLimits
from gog_edge.types import StopReason
from tests.agent.cameras import SIZE, camera
from tests.agent.test_loop import ANSWER
from tests.runtime.conftest import MakeAgent, picture

ANSWERS = [ANSWER] * 200


def test_an_iterator_of_frames_is_watched_to_its_end(make_agent: MakeAgent) -> None:
    frames = [picture(n) for n in range(4)]
    with make_agent(ANSWERS).watch(iter(frames), "q", every=True, deadline="60s") as watch:
        seen = list(watch)
    assert [s.number for s in seen] == [0, 1, 2, 3] and all(s.dropped == 0 for s in seen)
    assert [s.frame for s in seen] == frames
    assert {s.answer.text for s in seen} == {"fish"}


def test_pictures_above_the_limits_are_refused(make_agent: MakeAgent) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    agent = make_agent(ANSWERS, pictures=ImageLimits(max_pixels=64 * 48 - 1))
    with agent.watch(iter([pixels]), "q", bgr=False) as watch, pytest.raises(ImageError, match="max_pixels"):
        next(watch)


def test_only_the_newest_frame_is_asked_about(make_agent: MakeAgent) -> None:
    first_asked = threading.Event()

    def frames() -> Iterator[Frame]:
        yield picture(0)
        first_asked.wait(60)
        yield from (picture(n) for n in range(1, 6))

    with make_agent(ANSWERS).watch(frames(), "q") as watch:
        one = next(watch)
        first_asked.set()
        watch._reader._thread.join(60)  # all frames have come
        (last,) = list(watch)
    assert (one.number, last.number, last.dropped) == (0, 5, 4)
    assert last.frame == picture(5)


def test_the_source_waits_where_every_frame_counts(make_agent: MakeAgent) -> None:
    pulled = itertools.count()
    frames = (picture(next(pulled)) for _ in range(100))
    with make_agent(ANSWERS).watch(frames, "q", every=True) as watch:
        seen = [next(watch) for _ in range(3)]
    assert [s.number for s in seen] == [0, 1, 2]
    assert next(pulled) <= 5  # back-pressure: what was taken, and the next one


def test_the_deadline_counts_from_the_frame() -> None:
    now = [10.0]
    given: list[tuple[int, float]] = []

    class Camera:
        frames = ((0, 9.9), (1, 8.0), (2, 10.0))  # frame 1 is too old when its turn comes

        def newest(self, after: int) -> Taken[str] | None:
            return next((Taken(n, at, "x") for n, at in self.frames if n > after), None)

    def answer(taken: Taken[str], left: float) -> str:
        given.append((taken.number, left))
        now[0] += 0.05
        return "a"

    seen = list(newest_answers(Camera(), answer, cut_of(1.0), lambda: now[0]))
    assert given == [(0, pytest.approx(0.85)), (2, pytest.approx(0.9))]
    assert [s.age for s in seen] == [pytest.approx(0.15), pytest.approx(0.1)]
    assert [s.dropped for s in seen] == [0, 1]


def test_leaving_cancels_the_question_and_ends_the_thread(make_agent: MakeAgent) -> None:
    agent = make_agent(ANSWERS)

    def frames() -> Iterator[Frame]:
        while True:
            yield picture(0)

    with agent.watch(frames(), "q") as watch:
        thread = watch._reader._thread
        next(watch)
    assert not thread.is_alive() and agent._running == set()
    assert list(watch) == []


def test_an_error_of_an_iterator_is_raised(make_agent: MakeAgent) -> None:
    def frames() -> Iterator[Frame]:
        yield picture(0)
        raise ZeroDivisionError("mine")

    with make_agent(ANSWERS).watch(frames(), "q", every=True) as watch:
        next(watch)
        with pytest.raises(ZeroDivisionError, match="mine"):
            next(watch)


def test_arrays_have_an_order_of_colours(make_agent: MakeAgent) -> None:
    array = picture(3).pixels.copy()
    with make_agent(ANSWERS).watch([array], "q", bgr=True) as watch:
        assert next(watch).frame == Frame.from_cv2(array)


def test_what_cannot_be_watched(make_agent: MakeAgent, tmp_path: Path) -> None:
    agent = make_agent(ANSWERS)
    with pytest.raises(CameraError, match="no such file"):
        agent.watch(tmp_path / "gone.mp4", "q")
    for wrong in (None, True, b"bytes", 1.5):
        with pytest.raises(UsageError, match="can't be watched"):
            agent.watch(wrong, "q")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a deadline of '2 parsecs'"):
        agent.watch([], "q", deadline="2 parsecs")
    with agent.watch([]) as watch:  # the dialect's usual question
        assert list(watch) == []


def test_patience_ends(make_agent: MakeAgent) -> None:
    let_go = threading.Event()

    def frames() -> Iterator[Frame]:
        let_go.wait(60)
        yield picture(0)

    with make_agent(ANSWERS).watch(frames(), "q", patience="20ms") as watch:
        with pytest.raises(CameraError, match=r"the frames gave no frame for 0\.02 s"):
            next(watch)
        let_go.set()


# -- OpenCV --------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Twelve frames, 30 a second: red, then blue."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30.0, (64, 48))
    for n in range(12):
        writer.write(np.full((48, 64, 3), (0, 0, 250) if n < 6 else (250, 0, 0), np.uint8))
    writer.release()
    return path


def test_a_video_file(make_agent: MakeAgent, film: Path) -> None:
    with make_agent(ANSWERS).watch(film, "q", every=True) as watch:
        seen = list(watch)
    assert [s.number for s in seen] == list(range(12))
    assert [tuple(np.round(s.frame.pixels[20, 20] / 250).astype(int)) for s in seen] == [(1, 0, 0)] * 6 + [
        (0, 0, 1)
    ] * 6
    assert all(s.frame.source == str(film) for s in seen)
    with make_agent(ANSWERS).watch(str(film), "q") as watch:
        newest = list(watch)
    assert 0 < len(newest) <= 12
    assert newest[-1].number == sum(s.dropped + 1 for s in newest) - 1


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_camera_that_dies_comes_back(
    scheme: str,
    make_agent: MakeAgent,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV")
    monkeypatch.setattr(frame_reader, "FIRST_S", 0.01)
    with camera(6, 0, -1, 6) as server, caplog.at_level(logging.WARNING, "gog_edge.camera"):
        with make_agent(ANSWERS).watch(server.address(scheme), "q", deadline="60s", patience="60s") as watch:
            seen: list[Sighting] = []
            while server.connections < 5 or len(seen) < 3:
                seen.append(next(watch))
        thread = watch._reader._thread
        thread.join(60)
        assert not thread.is_alive()
    assert {s.answer.stop for s in seen} == {StopReason.ANSWERED}
    near = [min(np.abs(s.frame.pixels.astype(int) - picture(n, *SIZE).pixels).mean() for n in range(7)) for s in seen]
    assert max(near) < 70  # noise loses much in JPEG; another frame of it is 85 away
    assert [s.number for s in seen] == sorted({s.number for s in seen})
    pauses = [float(m.rpartition(" in ")[2].removesuffix(" s")) for m in caplog.messages if "opened again" in m]
    assert pauses[:3] == [0.01, 0.02, 0.04]  # it grows while nothing comes
    assert 0.01 in pauses[3:]  # and starts again after a frame


def test_a_camera_that_never_was_is_an_error(make_agent: MakeAgent) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV")
    with camera() as server:
        address = server.address("http").replace("http://", "http://me:secret@")
    agent = make_agent(ANSWERS)
    for source in (address, "/dev/video97", 97):
        with agent.watch(source, "q") as watch, pytest.raises(CameraError, match="can't be opened") as error:
            next(watch)
        assert "secret" not in str(error.value)


def test_a_pipeline_needs_an_opencv_with_gstreamer(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  Video I/O:\n    GStreamer:                   NO\n")
    watched = make_agent(ANSWERS).watch("videotestsrc ! videoconvert ! appsink", "q")
    with watched as watch, pytest.raises(UsageError, match="without GStreamer"):
        next(watch)


def test_without_opencv_an_extra_is_named(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with make_agent(ANSWERS).watch(0, "q") as watch, pytest.raises(UsageError, match=r"gog-edge\[camera\]"):
        next(watch)
