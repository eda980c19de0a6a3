"""Who runs with whom, and what becomes of the others when one is late, cancelled, wrong or interrupted: a fake engine
whose runs end when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget, DeadlineReached
from gog_edge.engines.base import F32, DecoderInputs, DecoderRun
from gog_edge.errors import CancelledError, EngineError
from gog_edge.runtime.decoder import SharedRuns
from gog_edge.runtime.together import PIECE
from tests.runtime.fakes import FakeCache

SOON = 20.0


class FakeRunner:
    """Keeps ids as rows; logits of a token are its id. `runs`: (cache, past, rows) of each conversation, run by run."""

    most_together = 8

    def __init__(self) -> None:
        self.runs: list[list[tuple[FakeCache, int, int]]] = []
        self.bad: set[FakeCache] = set()
        self.ends: dict[int, BaseException] = {}  # of runs, by number
        self.started, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.held = False
        self._running = threading.Lock()

    def new_cache(self, tokens: int) -> FakeCache:
        return FakeCache()

    def run(self, inputs: DecoderInputs, cache: Any, past: int, budget: Budget = UNLIMITED) -> F32:
        (logits,) = self._run([DecoderRun(inputs, cache, past)])
        assert logits is not None
        return logits

    def run_together(self, runs: Sequence[DecoderRun]) -> list[F32 | None]:
        assert len(runs) > 1
        assert sum(run.inputs.read[0] < run.inputs.read[1] for run in runs) <= 1
        return self._run(runs)

    def _run(self, runs: Sequence[DecoderRun]) -> list[F32 | None]:
        assert self._running.acquire(blocking=False), "two runs at a time"
        try:
            self.runs.append([(run.cache, run.past, len(run.inputs.embeds)) for run in runs])  # type: ignore[misc]
            number = len(self.runs) - 1
            self.started.release()
            if self.held:
                assert self.go.acquire(timeout=SOON)
            if number in self.ends:
                raise self.ends[number]
            if any(run.cache in self.bad for run in runs):
                raise EngineError("a bad cache")
            results: list[F32 | None] = []
            for run in runs:
                inputs, cache = run.inputs, run.cache
                assert isinstance(cache, FakeCache) and inputs.ids is not None and inputs.positions is not None
                assert len(cache.ids) >= run.past and inputs.deepstack is not None
                ids = inputs.embeds[:, 0].astype(int).tolist()
                assert ids == inputs.ids.tolist() == inputs.deepstack[0, :, 0].tolist() == inputs.positions[0].tolist()
                cache.ids[run.past :] = ids
                results.append(inputs.embeds[len(ids) - inputs.last_k :].copy() if inputs.last_k else None)
            return results
        finally:
            self._running.release()


def tokens(first: int, count: int, *, given: bool = False, last_k: int = 1) -> DecoderInputs:
    """Ids `first` … as embeddings, angles, positions and DeepStack features."""
    ids = np.arange(first, first + count, dtype=np.int32)
    rows: NDArray[np.float32] = ids[:, None].astype(np.float32)
    return DecoderInputs(
        rows, rows, rows, rows[None], last_k, (), ids, np.tile(ids, (3, 1)), (0, count) if given else (0, 0)
    )


class Scene:
    """A shared runner and threads that ask it for runs."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.fake = FakeRunner()
        self.shared = SharedRuns(self.fake)
        self.caches = [FakeCache() for _ in range(12)]
        self._pool = pool

    def ask(self, number: int, inputs: DecoderInputs, past: int = 0, budget: Budget = UNLIMITED) -> Future[Any]:
        return self._pool.submit(self.shared.run, inputs, self.caches[number], past, budget)

    def sizes(self) -> list[int]:
        return [len(run) for run in self.fake.runs]

    def hold(self, count: int) -> list[Future[Any]]:
        """One runs alone and is held; `count` more wait for it."""
        self.fake.held = True
        asked = [self.ask(0, tokens(0, 1))]
        assert self.fake.started.acquire(timeout=SOON)
        for number in range(1, count + 1):
            asked.append(self.ask(number, tokens(10 * number, 1)))
            self.until(lambda n=number: len(self.shared._queue) == n)  # type: ignore[misc]
        return asked

    def let_go(self) -> None:
        self.fake.held = False
        self.fake.go.release()

    @staticmethod
    def until(true: Callable[[], bool]) -> None:
        for _ in range(2000):
            if true():
                return
            threading.Event().wait(0.005)
        raise AssertionError("it did not come about")


@pytest.fixture
def scene() -> Any:
    with ThreadPoolExecutor(16) as pool:
        yield Scene(pool)


def test_those_that_wait_run_together(scene: Scene) -> None:
    asked = scene.hold(5)
    scene.let_go()
    assert [int(f.result(SOON)[0, 0]) for f in asked] == [0, 10, 20, 30, 40, 50]
    assert scene.sizes() == [1, 5]
    assert scene.shared.sharing == 5


def test_no_more_than_the_engine_takes_and_nobody_is_left_out(scene: Scene) -> None:
    asked = scene.hold(11)
    scene.let_go()
    for future in asked:
        future.result(SOON)
    assert scene.sizes() == [1, 8, 3]


def test_who_is_alone_never_meets_the_others_way(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.shared, "_with_others", None)
    for past in range(20):
        scene.shared.run(tokens(past, 1), scene.caches[0], past)
    assert scene.caches[0].ids == list(range(20)) and scene.shared.sharing == 1


def test_a_prompt_is_read_in_pieces_while_another_writes(scene: Scene) -> None:
    fake, mine = scene.fake, scene.caches[0]
    asked = scene.hold(0)
    prompt = scene.ask(1, tokens(1000, 300, given=True))
    scene.until(lambda: len(scene.shared._queue) == 1)
    fake.go.release()
    asked[0].result(SOON)
    past = 1
    while not prompt.done():
        step = scene.ask(0, tokens(past, 1), past)
        assert fake.started.acquire(timeout=SOON)
        fake.go.release(2)
        step.result(SOON)
        past += 1
    scene.let_go()
    assert int(prompt.result()[0, 0]) == 1299 and scene.caches[1].ids == list(range(1000, 1300))
    assert mine.ids == list(range(past))
    pieces = [(rows, len(run)) for run in fake.runs for cache, _, rows in run if cache is scene.caches[1]]
    assert [rows for rows, _ in pieces] == [PIECE] * 4 + [300 - 4 * PIECE]
    assert sum(count for _, count in pieces) >= 2 * len(pieces) - 1, "the other one did not write meanwhile"


def test_the_last_rows_of_a_prompt_stay_together(scene: Scene) -> None:
    asked = scene.hold(1)
    prompt = scene.ask(2, tokens(100, PIECE + 2, given=True, last_k=5))
    scene.until(lambda: len(scene.shared._queue) == 2)
    scene.let_go()
    assert prompt.result(SOON)[:, 0].tolist() == [float(i) for i in range(100 + PIECE - 3, 100 + PIECE + 2)]
    for future in asked:
        future.result(SOON)


def test_newcomers_alone_read_all_at_once(scene: Scene) -> None:
    scene.shared.run(tokens(0, 500, given=True), scene.caches[0], 0)
    assert scene.fake.runs[-1] == [(scene.caches[0], 0, 500)]


def test_nobody_waits_for_a_conversation_that_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question after the other, each with a cache of its own: every prompt is read at once, with nobody's wait."""
    monkeypatch.setattr(scene.shared, "_with_others", lambda *_: pytest.fail("waits for others"))
    for number in range(3):
        scene.shared.run(tokens(0, 5 * PIECE, given=True), scene.caches[number], 0)
        scene.fake.runs.clear()  # it holds the cache, too
        scene.caches[number] = FakeCache()


def test_who_ended_is_no_longer_waited_for_by_those_who_share(scene: Scene) -> None:
    asked = scene.hold(2)
    scene.let_go()
    for one in asked:
        one.result(timeout=SOON)
    scene.fake.runs.clear()
    del asked, one
    scene.caches[1:3] = [FakeCache(), FakeCache()]
    scene.until(lambda: len(scene.shared._ended) == 2)
    scene.shared.run(tokens(1, 3 * PIECE, given=True), scene.caches[0], 1)
    assert scene.sizes() == [1] and scene.fake.runs[0][0][2] == 3 * PIECE


def test_an_error_of_one_is_its_own(scene: Scene) -> None:
    asked = scene.hold(4)
    scene.fake.bad.add(scene.caches[2])
    scene.let_go()
    with pytest.raises(EngineError, match="a bad cache"):
        asked[2].result(SOON)
    assert [int(asked[i].result(SOON)[0, 0]) for i in (0, 1, 3, 4)] == [0, 10, 30, 40]
    assert int(scene.ask(1, tokens(11, 1), 1).result(SOON)[0, 0]) == 11


def test_who_waits_leaves_at_once_when_cancelled(scene: Scene) -> None:
    asked = scene.hold(2)
    with Budget() as budget, Budget(0.05) as short:
        cancelled, late = scene.ask(3, tokens(30, 1), 0, budget), scene.ask(4, tokens(40, 1), 0, short)
        scene.until(lambda: len(scene.shared._queue) >= 3)
        budget.cancel()
        with pytest.raises(CancelledError):
            cancelled.result(SOON)  # the run of another still goes on
        with pytest.raises(DeadlineReached):
            late.result(SOON)
    scene.let_go()
    for future in asked:
        future.result(SOON)
    assert scene.sizes() == [1, 2] and not scene.caches[3].ids and not scene.caches[4].ids


def test_a_cancelled_leader_hands_over(scene: Scene) -> None:
    scene.fake.held = True
    first = scene.ask(0, tokens(0, 1))
    assert scene.fake.started.acquire(timeout=SOON)
    with Budget() as budget:
        leader = scene.ask(1, tokens(10, 1), 0, budget)  # it will lead: it waits longest
        scene.until(lambda: len(scene.shared._queue) == 1)
        other = scene.ask(2, tokens(20, 1))
        scene.until(lambda: len(scene.shared._queue) == 2)
        budget.cancel()
        scene.let_go()
        with pytest.raises(CancelledError):
            leader.result(SOON)
    assert int(other.result(SOON)[0, 0]) == 20 and int(first.result(SOON)[0, 0]) == 0


def test_a_prompt_is_given_up_between_two_pieces(scene: Scene) -> None:
    asked = scene.hold(1)
    with Budget() as budget:
        prompt = scene.ask(2, tokens(100, 400, given=True), 0, budget)
        scene.until(lambda: len(scene.shared._queue) == 2)
        scene.fake.go.release()
        assert scene.fake.started.acquire(timeout=SOON)  # the first piece runs, with the other's step
        budget.cancel()
        scene.let_go()
        with pytest.raises(CancelledError):
            prompt.result(SOON)
    for future in asked:
        future.result(SOON)
    assert scene.caches[2].ids == list(range(100, 100 + PIECE))


def test_an_interrupted_leader_leaves_the_others_running(scene: Scene) -> None:
    asked = scene.hold(3)
    scene.fake.ends[1] = KeyboardInterrupt()
    scene.let_go()
    with pytest.raises(KeyboardInterrupt):
        asked[1].result(SOON)
    assert [int(asked[i].result(SOON)[0, 0]) for i in (0, 2, 3)] == [0, 20, 30]
    assert int(scene.ask(1, tokens(10, 1)).result(SOON)[0, 0]) == 10


def test_one_that_does_not_come_back_is_waited_for_once(scene: Scene) -> None:
    asked = scene.hold(2)
    scene.let_go()
    for future in asked:
        future.result(SOON)
    for past in range(1, 6):
        scene.shared.run(tokens(past, 1), scene.caches[1], past)
    assert [len(run) for run in scene.fake.runs[2:]] == [1] * 5
