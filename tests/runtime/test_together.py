"""Conversations that run at the same time share runs, and each gets the bits that it gets alone: real decoders."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gog_edge.deadline import Budget, DeadlineReached
from gog_edge.engines.base import DecoderRun
from gog_edge.errors import CancelledError, GogEdgeError
from gog_edge.image.frame import Frame
from gog_edge.runtime.generate import TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.model import Model
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation
from gog_edge.sampling_options import Sampling
from gog_edge.types import Control, ImagePart, Segment, Text
from tests.native.graphs import needs_ops
from tests.runtime.conftest import picture
from tests.runtime.test_rows import REPLY, Loaded, loaded_case, rows_of, same

pytestmark = needs_ops

SHARED = [
    *("qwen3 fp32", "qwen3 int8", "qwen3 int5", "qwen3 int4", "qwen3 int4, KV int8", "qwen2.5 int4"),
    *("qwen3 experts, int4", "qwen3.5 int8", "qwen3.5 int4, KV int8", "gog-nano int8", "gog-nano int4"),
]


@pytest.fixture(scope="module", params=SHARED)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    with loaded_case(request.param, tmp_path_factory.mktemp("together")) as made:
        yield made


class Runs:
    """How many conversations and tokens the runs of a model had."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: Counter[int] = Counter()
        self.mixed = 0
        runner: Any = model.engine.decoder
        run_together = runner.run_together

        def counted(runs: Sequence[DecoderRun]) -> Any:
            self.sizes[len(runs)] += 1
            self.mixed += any(run.inputs.read[0] < run.inputs.read[1] for run in runs)
            return run_together(runs)

        monkeypatch.setattr(runner, "run_together", counted)


class EveryThird:
    """A grammar: ids that divide by three, and now and then some that are forced."""

    finished = False

    def __init__(self, vocab: int) -> None:
        self._keep = np.arange(vocab) % 3 == 0
        self._count = 0

    def apply(self, logits: NDArray[np.float32]) -> None:
        logits[~self._keep] = -np.inf

    def accept(self, token: int) -> None:
        assert token % 3 == 0
        self._count += 1

    def forced(self) -> list[int]:
        if self._count % 7 != 6:
            return []
        self._count += 5
        return [30, 60, 90, 120, 150]


Outcome = tuple[list[int], NDArray[np.float32], list[NDArray[Any]]]


def converse(model: Model, number: int, begun: threading.Event | None = None) -> Outcome:
    """A conversation of two turns, the `number`th of its kind: its tokens, last logits and KV rows."""
    session = Session(model)
    session.add_image(picture(number % 3, 80 + 30 * number, 60 + 20 * number))
    session.add_image(picture(7, 90, 70))
    words = Text(f"question {number}: what is it? " * (1 + 5 * (number % 4)))
    prompt: list[Segment] = [Control("<|im_start|>user\n"), ImagePart(0), words, Control("<|im_end|>\n")]
    session.append(prompt)
    sampling = Sampling(temperature=0.9, seed=number) if number % 2 else Sampling()
    guesses = Speculation(max_draft=4, adaptive=False, ngram_min=1) if number % 3 == 1 else Speculation(max_draft=0)
    writer = TurnWriter(session, Sampler(sampling), guesses)
    for turn, count in enumerate((30 + 9 * number, 25)):
        constraint = EveryThird(model.manifest.decoder.vocab) if number % 4 == 2 else None
        for at, _ in enumerate(writer.turn(TurnOptions(count, ()), constraint, TurnResult())):
            if begun is not None and turn == 0 and at == 3:
                begun.set()
        if turn == 0:
            session.append(REPLY)
    logits = session.run().copy()
    return session.tokens.tolist(), logits, rows_of(session._cache, len(session))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_runs_together_gets_the_bits_that_it_gets_alone(
    shared: Loaded, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight conversations of different lengths: some begin at once, each of the others once another has begun to
    write; they end when they end. With and without guesses, a grammar, sampling."""
    alone = [converse(shared.model(1), number) for number in range(8)]
    model = shared.model(threads)
    runs = Runs(model, monkeypatch)
    begun = [threading.Event() for _ in range(8)]

    def join(number: int) -> Outcome:
        if number > 2:
            assert begun[number - 3].wait(60)
        return converse(model, number, begun[number])

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(join, range(8)))
    assert runs.sizes and runs.mixed, "nothing ran together"
    for number, ((ids, logits, rows), mine) in enumerate(zip(together, alone)):
        assert ids == mine[0], number
        assert np.array_equal(logits, mine[1]), number
        assert same(rows, mine[2]), number


def test_one_that_is_cancelled_or_late_does_not_disturb_the_others(shared: Loaded, frame: Frame) -> None:
    model = shared.model(2)
    alone = [converse(shared.model(1), number) for number in (0, 1, 2)]
    rng = np.random.default_rng(5)
    ends: Counter[type[Exception]] = Counter()
    going = threading.Event()
    going.set()

    def interrupted(number: int) -> None:
        """Questions that end after a while, wherever they are then."""
        while going.is_set():
            session = Session(model)
            session.add_image(frame)
            session.append([ImagePart(0), Text("a long text. " * int(rng.integers(1, 60)))])
            with Budget(0.01 if number else None) as budget:
                timer = threading.Timer(float(rng.random()) * 0.02, budget.cancel)
                if not number:
                    timer.start()
                try:
                    list(TurnWriter(session, Sampler(Sampling())).turn(TurnOptions(400, (), (), budget)))
                except GogEdgeError as e:
                    ends[type(e)] += 1
                timer.cancel()
            ids = session.tokens.tolist()
            assert session.run().shape == (1, model.manifest.decoder.vocab)  # it can go on
            assert session.tokens.tolist() == ids

    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(interrupted, number) for number in (0, 1)]
        together = list(pool.map(lambda number: converse(model, number), (0, 1, 2)))
        going.clear()
        for other in others:
            other.result(60)
    assert ends[CancelledError] and ends[DeadlineReached], ends
    assert ends.keys() == {CancelledError, DeadlineReached}
    for mine, (ids, logits, rows) in zip(alone, together):
        assert ids == mine[0] and np.array_equal(logits, mine[1]) and same(rows, mine[2])
