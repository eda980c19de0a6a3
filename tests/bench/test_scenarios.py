"""The scenarios that are no conversation: a camera with a clock of its own, hidden searches, an index that grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gog_edge.bench.camera import camera_cells, watch
from gog_edge.bench.cropping import crop_cells
from gog_edge.bench.indexing import index_cells
from gog_edge.bench.ours import LocalSubject
from gog_edge.bench.pieces import PIECES, Given
from gog_edge.bench.reuse import prompt_cells, question_cells
from gog_edge.bench.roofline import Roofline
from gog_edge.bench.searching import OURS, PLAIN, SleepingProvider, search_cells
from gog_edge.bench.subject import picture
from gog_edge.errors import BenchError, SearchTimeoutError
from gog_edge.runtime.frame import Frame
from gog_edge.runtime.search.base import Deadline, ImageQuery


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
    ],
)
def test_a_camera_answers_the_newest_frame(fps: float, work: float, dropped: int, latency: float) -> None:
    clock, seen = Clock(), list[int]()

    def answer(number: int) -> None:
        seen.append(number)
        clock.pass_(work)

    watched = watch(answer, fps, 5, clock, clock.pass_)
    assert seen == sorted(set(seen))
    assert watched.dropped == dropped == watched.taken - 5
    assert max(watched.latencies) == pytest.approx(latency)
    assert watched.in_time(latency + 0.01) == 100.0
    assert watched.in_time(work / 2) == 0.0


def test_the_camera_scenario_yields_its_cells(tiny_bundle: Path) -> None:
    subject = LocalSubject(tiny_bundle)
    subject.load()
    try:
        found = {c.stage: c for c in camera_cells(subject, 1, rates=(50.0,))}
    finally:
        subject.close()
    assert set(found) == {"age of the answer", "frames dropped", "answers in time", "answers a second"}
    assert found["age of the answer"].summary.n == 5
    assert all(c.x == 50.0 for c in found.values())


def test_an_early_search_is_waited_for_less(tiny_bundle: Path) -> None:
    subject = LocalSubject(tiny_bundle)
    subject.load()
    try:
        found = {(c.subject, c.stage): c.summary for c in search_cells(subject, 1, latencies=(0.4,))}
    finally:
        subject.close()
    for kind in ("glance", "gaze"):
        assert found[PLAIN, f"wait for {kind}"].p50 >= 0.39
        assert found[OURS, f"wait for {kind}"].p50 < found[PLAIN, f"wait for {kind}"].p50
        assert 0 < found[OURS, f"{kind} hidden"].p50 <= 100


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
            with pytest.raises(BenchError, match="--bundle"):
                list(piece(Given(None, 1)))
