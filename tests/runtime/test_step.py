"""What a decoding step costs in Python: calls and files, from the caller's `next` to its token, on the real engine."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gog_edge
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import Bundle
from gog_edge.engines.ort.options import OrtOptions
from gog_edge.image.frame import Frame
from gog_edge.runtime.speculation import Speculation
from gog_edge.types import TokenEvent
from tests.native.graphs import needs_ops
from tests.runtime.fakes import make_bundle

PACKAGE = str(Path(gog_edge.__file__).parent)
TOWER = (f"{PACKAGE}/agent", f"{PACKAGE}/runtime")  # where a token climbs
MOST_CALLS, MOST_FILES, MOST_C_CALLS, MOST_GENERATORS = 60, 10, 130, 4
WITH_DEADLINE, WITH_GRAMMAR = 15, 25  # calls on top: reading the clock; masking, following, forcing
WITH_SHARING = 5  # C calls on top with native operators: whether somebody else runs
CO_GENERATOR = 0x20


@dataclass
class Step:
    """What one `next` of a stream called. `calls`: Python calls by file; `c_calls`: of C functions from them."""

    calls: Counter[str] = field(default_factory=Counter)
    c_calls: int = 0
    generators: int = 0

    @property
    def own_files(self) -> list[str]:
        return sorted(name for name in self.calls if name.startswith(PACKAGE))

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            self.calls[code.co_filename] += 1  # the body of a dataclass is "<string>": a call, but no file
            if code.co_flags & CO_GENERATOR and code.co_name != "<genexpr>" and code.co_filename.startswith(TOWER):
                self.generators += 1
        elif event == "c_call":
            self.c_calls += 1


def steps(events: Iterator[Any]) -> Iterator[tuple[Step, Any]]:
    """Every event, with what it took to come about."""
    while True:
        step, before = Step(), sys.getprofile()
        sys.setprofile(step.profile)
        try:
            event = next(events, None)
        finally:
            sys.setprofile(before)
        if event is None:
            return
        yield step, event


def decoding(agent: gog_edge.Agent, frame: Frame, deadline: float | None) -> list[Step]:
    """The steps of a turn, without the prefill, what is bound once for a shape, and looks for a box that was closed."""
    agent.ask(frame, "What is it?")
    events = [(s, e) for s, e in steps(agent.stream(frame, "What is it?", deadline=deadline)) if type(e) is TokenEvent]
    assert len(events) >= 40
    taken = [step for (_, last), (step, _) in pairwise(events[2:39]) if not set("]>}\n") & set(last.text)]
    assert len(taken) >= 10
    return taken


@pytest.fixture(scope="module", params=["ort", pytest.param("native", marks=needs_ops)])
def either(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With stock operators, and with those whose runs are shared by questions that run at the same time."""
    if request.param == "ort":
        return bundle
    return make_bundle(tmp_path_factory.mktemp("native"), backend="native")


@pytest.mark.parametrize("deadline", [None, 300.0])
def test_a_step_is_short_and_stays_in_few_files(
    either: Bundle, frame: Frame, tmp_path: Path, deadline: float | None
) -> None:
    plain = RunOptions(cache_dir=tmp_path, turn_tokens=40, max_turns=1, grammar="off", speculation=Speculation(0))
    for options in (plain, replace(plain, speculation=Speculation(), exact=False)):
        with gog_edge.load(either, options=options, engine_options=OrtOptions(threads=1, spin=False)) as agent:
            taken = decoding(agent, frame, deadline)
        if options is not plain:  # a guess of a new length is bound, too; when one comes depends on the machine
            taken = sorted(taken, key=lambda step: sum(step.calls.values()))[: len(taken) // 2]
        for step in taken:
            assert sum(step.calls.values()) <= MOST_CALLS + WITH_DEADLINE * bool(deadline), step.calls
            assert len(step.own_files) <= MOST_FILES, step.own_files
            assert step.c_calls <= MOST_C_CALLS + WITH_SHARING * (either.manifest.backend == "native")
            assert step.generators <= MOST_GENERATORS


def test_a_grammar_adds_its_own_file_and_few_calls(bundle: Bundle, frame: Frame, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    options = RunOptions(cache_dir=tmp_path, turn_tokens=40, max_turns=1, grammar="on", speculation=Speculation(0))
    with gog_edge.load(bundle, options=options, engine_options=OrtOptions(threads=1, spin=False)) as agent:
        taken = decoding(agent, frame, None)
    for step in taken:
        assert sum(step.calls.values()) <= MOST_CALLS + WITH_GRAMMAR, step.calls
        assert len(step.own_files) <= MOST_FILES + 1, step.own_files


@pytest.mark.parametrize("deadline", [None, 300.0])
def test_a_forced_answer_climbs_no_further(
    bundle: Bundle, frame: Frame, tmp_path: Path, deadline: float | None
) -> None:
    options = RunOptions(cache_dir=tmp_path, turn_tokens=8, max_turns=1, grammar="off")
    with gog_edge.load(bundle, options=options, engine_options=OrtOptions(threads=1, spin=False)) as agent:
        taken = list(steps(agent.stream(frame, "What is it?", deadline=deadline)))
    forced = [step for step, event in taken if type(event) is TokenEvent and event.step == 1]
    assert forced and all(step.generators <= MOST_GENERATORS for step in forced)
