"""Many questions to a real policy at a time: the answers, steps and tokens of one after the other."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gog_edge
from gog_edge import Agent, AskRequest
from gog_edge.agent.options import RunOptions
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.errors import ImageError
from gog_edge.types import Answer, Hit, StopReason, TokenEvent
from tests.native.graphs import needs_ops
from tests.runtime.conftest import picture
from tests.runtime.fakes import FakeProvider

pytestmark = needs_ops

NANO = Path(__file__).parents[2] / "models" / "gog-nano"
QUESTIONS = ("What is the capital of the country whose flag is first from the left?", "How many towers are there?")


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> gog_edge.Bundle:
    from gog_edge.export.options import ExportOptions
    from gog_edge.export.pipeline import export_bundle

    folder = tmp_path_factory.mktemp("nano") / "bundle"
    return export_bundle(NANO, folder, ExportOptions(backend="native", precision="int4"))


@pytest.fixture
def agent(nano: gog_edge.Bundle, tmp_path: Path) -> Iterator[Agent]:
    options = RunOptions(cache_dir=tmp_path, max_turns=3, turn_tokens=60)
    engine = OrtOptions(threads=2, spin=False)
    with gog_edge.load(nano, providers=[FakeProvider([Hit("a", "x")])], options=options, engine_options=engine) as made:
        yield made


@pytest.fixture
def runs(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many conversations the shared runs had."""
    sizes: Counter[int] = Counter()
    runner: Any = agent.model.engine.decoder
    run_together = runner.run_together

    def counted(asked: Any) -> Any:
        sizes[len(asked)] += 1
        return run_together(asked)

    monkeypatch.setattr(runner, "run_together", counted)
    return sizes


def requests(count: int) -> list[AskRequest]:
    return [AskRequest(picture(n, 120 + 9 * n, 90), QUESTIONS[n % 2]) for n in range(count)]


def plain(answer: Answer) -> tuple[Any, ...]:
    turns = [step.turn.raw for step in answer.steps]
    usage = answer.usage
    return answer.text, answer.stop, turns, usage.generated_tokens + usage.forced_tokens


def test_the_answers_are_those_of_one_after_the_other(agent: Agent, runs: Counter[int]) -> None:
    alone = [plain(agent.ask(r.image, r.question)) for r in requests(10)]
    assert not runs
    together = [plain(answer) for answer in agent.ask_many(requests(10))]
    assert together == alone
    assert agent.most_together == 8 and max(runs) > 2


def test_questions_about_one_image_read_it_once(agent: Agent, tmp_path: Path) -> None:
    from PIL import Image

    paths = []
    for n in range(2):
        paths.append(tmp_path / f"{n}.png")
        Image.fromarray(picture(n).pixels).save(paths[-1])
    asked = [AskRequest(path, question) for path in paths for question in QUESTIONS]
    answers = list(agent.ask_many(asked))
    images = [answer.usage.encoded_images + answer.usage.cached_images for answer in answers]
    assert [answers[n].usage.reused_tokens > 40 for n in range(4)] == [False, True, False, True], images


def test_one_that_fails_or_is_cancelled_does_not_touch_the_others(agent: Agent, runs: Counter[int]) -> None:
    want = [plain(agent.ask(r.image, r.question)) for r in requests(4)]
    found: dict[int, Any] = {}
    gate = threading.Barrier(6)

    def ask(number: int) -> None:
        gate.wait(20)
        request = requests(4)[number % 4]
        if number == 4:  # a client that hangs up in the middle of a token
            for count, event in enumerate(events := agent.stream(request.image, request.question)):
                if isinstance(event, TokenEvent) and count > 5:
                    break
            events.close()  # type: ignore[attr-defined]
        elif number == 5:
            with pytest.raises(ImageError):
                agent.ask(b"no picture", "q")
            found[number] = agent.ask(request.image, request.question, deadline=0.02).stop
        else:
            found[number] = plain(agent.ask(request.image, request.question))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[n] for n in range(4)] == want
    assert found[5] is StopReason.DEADLINE and runs
