"""The scenarios that are no conversation: a camera with a clock of its own, hidden searches, an index that grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PilImage

from gog_edge.agent.loader import load
from gog_edge.bench.local_subject import LocalSubject
from gog_edge.bench.machine.roofline import Roofline
from gog_edge.bench.scenarios.batch import batch_cells
from gog_edge.bench.scenarios.camera import Stream, camera_cells, watch
from gog_edge.bench.scenarios.crop import crop_cells
from gog_edge.bench.scenarios.index import index_cells
from gog_edge.bench.scenarios.parts import PIECES, Given
from gog_edge.bench.scenarios.reuse import prompt_cells, question_cells
from gog_edge.bench.scenarios.search import LATE, OURS, PLAIN, SleepingProvider, search_cells
from gog_edge.bench.subject import picture
from gog_edge.cli.main import run
from gog_edge.errors import BenchError, SearchTimeoutError
from gog_edge.image.frame import Frame
from gog_edge.search.base import Deadline, ImageQuery
from gog_edge.types import Answer, StopReason
from tests.native.graphs import needs_ops
from tests.runtime.fakes import make_bundle


class Clock:
    """Time that passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("fps", "work", "dropped", "latency"),
    [
        (1.0, 0.25, 0, 0.25),  # quicker than the camera: every frame, at once
        (4.0, 0.25, 0, 0.25),
        (4.0, 1.0, 12, 1.0),  # three of four are dropped, an answer is never older than its own work
        (2.0, 0.75, 2, 1.0),  # frames 0 1 3 4 6: every other is half a period old when its turn comes
        (0.5, 3.5, 4, 3.5),  # frame 1 is 1.5 s old when it could be asked about, and that is too late
    ],
)
def test_a_camera_answers_the_newest_frame(fps: float, work: float, dropped: int, latency: float) -> None:
    clock, seen, left = Clock(), list[int](), list[float]()

    def answer(number: int, seconds: float) -> Answer:
        seen.append(number)
        left.append(seconds)
        clock.pass_(work)
        return Answer("a", StopReason.ANSWERED)

    watched = watch(answer, fps, 5, 1.2, clock, clock.pass_)
    assert seen == sorted(set(seen))
    assert watched.dropped == dropped == watched.taken - 5
    assert max(watched.latencies) == pytest.approx(latency)
    for mine, then in zip(left, watched.latencies):
        assert mine == pytest.approx(1.2 - (then - work)) and mine > 0  # its age when it was asked about is taken off
    assert watched.overruns(latency + 0.01) == (0.0,) * 5
    assert max(watched.overruns(latency - 0.125)) == pytest.approx(0.125)


def test_the_camera_scenario_uses_the_runtimes_deadline(tiny_bundle: Path, tmp_path: Path) -> None:
    for n in range(2):
        PilImage.fromarray(picture(64, 48, n).pixels).save(tmp_path / f"{n}.png")
    stream = Stream(rates=(50.0,), deadline=0.3, frames=tmp_path, question="What?")
    asked: list[tuple[bytes, float, Answer]] = []
    with load(tiny_bundle) as agent:

        def ask(pixels: NDArray[np.uint8], left: float) -> Answer:
            answer = agent.ask(pixels, stream.question, deadline=left)
            asked.append((pixels.tobytes(), left, answer))
            return answer

        found = {c.stage: c for c in camera_cells(ask, stream, 6)}
    assert len({pixels for pixels, _, _ in asked}) == 1 + 6  # two files, yet no frame is shown twice
    assert all(0 < left <= 0.285 for _, left, _ in asked)
    assert found["age of the answer"].summary.n == found["late by"].summary.n == 6
    assert all(c.x == 50.0 and "deadline 0.3 s" in c.note for c in found.values())
    cut = sum(a.stop is StopReason.DEADLINE for _, _, a in asked[1:])
    assert found["cut short by the deadline"].samples == (pytest.approx(100 * cut / 6),)
    assert set(found) > {"frames dropped", "deadline missed", "answers in time", "answers a second"}


def test_a_camera_needs_pictures_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchError, match="holds no picture"):
        list(camera_cells(lambda pixels, left: Answer("", StopReason.ANSWERED), Stream(frames=tmp_path), 1))
    assert run(["bench", "camera", "--fps", "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err
    assert run(["bench", "camera", "--fps", "2", "--deadline", "500ms", "--no-roofline"]) == 2
    assert "needs a bundle" in capsys.readouterr().err


def test_an_early_search_is_waited_for_less(tiny_bundle: Path) -> None:
    subject = LocalSubject(tiny_bundle)
    subject.load()
    try:
        found = {(c.subject, c.stage): c.summary for c in search_cells(subject, 1, latencies=(0.4,))}
    finally:
        subject.close()
    assert found[PLAIN, "wait for glance"].p50 >= 0.39
    assert found[OURS, "wait for glance"].p50 < found[PLAIN, "wait for glance"].p50
    assert 0 < found[OURS, "glance hidden"].p50 <= 100
    assert found[OURS, "glance: start to end of the call"].p50 > 0  # what can be hidden


def test_a_gaze_is_measured_until_its_results_are_read(tiny_bundle: Path) -> None:
    subject = LocalSubject(tiny_bundle)
    subject.load()
    try:
        cells = list(search_cells(subject, 1, latencies=(0.4,)))
    finally:
        subject.close()
    gaze = {c.stage.removeprefix("gaze"): c.summary.p50 for c in cells if c.stage.startswith("gaze")}
    read = {(c.subject, c.x): c.summary.p50 for c in cells if c.stage == "gaze: closed box to results read"}
    assert set(read) == {(OURS, 0.0), (OURS, 0.4), (LATE, 0.4), (PLAIN, 0.4)}
    assert min(read[OURS, 0.4], read[LATE, 0.4], read[PLAIN, 0.4]) >= 0.39  # nothing is known before it was searched
    assert 0 < gaze[": start to end of the call"] < read[OURS, 0.4]
    assert gaze[" hidden"] == pytest.approx(100 * (1 - (read[OURS, 0.4] - read[OURS, 0.0]) / 0.4))


def test_the_sleeping_provider_keeps_deadlines() -> None:
    query = ImageQuery(Frame.open(picture(8, 8, 1).pixels))
    assert len(SleepingProvider(0.01).search_image(query, k=2, deadline=Deadline.never())) == 2
    with pytest.raises(SearchTimeoutError):
        SleepingProvider(5).search_image(query, k=2, deadline=Deadline.after(0.01))


def test_the_index_scenario_grows_one_index() -> None:
    found = list(index_cells(1, sizes=(40, 90), dim=16))
    assert {c.x for c in found} == {40, 90}
    searches = [c for c in found if c.stage.startswith("search")]
    assert len(searches) == 6 and all(c.summary.n == 50 for c in searches)
    assert all(c.summary.minimum > 0 for c in found)


def test_later_questions_pay_for_their_own_words_only(tiny_bundle: Path) -> None:
    subject = LocalSubject(tiny_bundle)
    subject.load()
    try:
        found = list(question_cells(subject, (1, 3), Roofline(1, 10.0, {"fp32": 100.0})))
    finally:
        subject.close()
    flat = {c.stage: c for c in found if c.x is None}
    assert flat["every other question"].summary.n == 2
    assert flat["vision in every other question"].summary.maximum == 0.0
    first, mean = (c for c in found if c.x is not None)
    assert first.limit is not None and mean.limit is not None and mean.limit < first.limit
    assert mean.samples[0] < first.samples[0]


@pytest.mark.parametrize("backend", ["ort", pytest.param("native", marks=needs_ops)])
def test_conversations_write_together(tmp_path: Path, tiny_bundle: Path, backend: str) -> None:
    """Also where each computes alone: that is what sharing is compared with."""
    bundle = tiny_bundle if backend == "ort" else make_bundle(tmp_path, backend="native").root
    subject = LocalSubject(bundle)
    subject.load()
    try:
        found = list(batch_cells(subject, 2, (1, 3)))
    finally:
        subject.close()
    assert [(c.stage, c.x) for c in found if c.x is not None] == [
        *(("all conversations", x) for x in (1, 3)),
        *(("processor time a token", x) for x in (1, 3)),
    ]
    assert all(c.summary.n == 2 and c.summary.minimum > 0 for c in found)
    (beside,) = (c for c in found if c.stage == "first token, beside 2")
    assert beside.note.endswith("of 4 running ones had ended")


def test_the_prompt_comes_from_memory_and_from_disk(tiny_bundle: Path) -> None:
    found = list(prompt_cells(tiny_bundle, 1))
    assert [c.stage for c in found] == ["prompt computed", "prompt from memory", "prompt from disk"]
    assert all(int(c.note.split()[0]) > 100 for c in found)


def test_crops_are_cut_by_everybody_who_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOG_EDGE_CACHE", str(tmp_path))  # without the environment of transformers
    found = {c.subject: c for c in crop_cells(2)}
    assert set(found) == {"gog-edge", "gog-edge 2 threads", "Pillow + numpy"}
    assert all(c.summary.n == 2 and c.summary.minimum > 0 for c in found.values())


def test_every_piece_says_what_it_is_and_what_it_needs() -> None:
    for name, piece in PIECES.items():
        assert piece.__doc__
        if name not in ("crop", "index"):
            with pytest.raises(BenchError, match="--checkpoint" if name == "export" else "--bundle"):
                list(piece(Given(None, 1)))
