"""The fault harness: every area in a few trials, so that none of them rots, and what it counts as a failure."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults.harness import report
from tests.faults.harness.controller import Result, run
from tests.faults.harness.core import Area, Attempt, Exhausted, randomness, work
from tests.faults.harness.mutate import ODD, damaged, mutated, mutated_text
from tests.faults.harness.registry import AREAS, NAMES, named

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
FEW = {"images": 60, "calls": 200, "settings": 60, "bundles": 24, "manifests": 12, "sessions": 60, "indexes": 24,
       "mcp": 30, "http": 30, "kernels": 6, "kills": 8, "soak": 30}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "sanitizers"])  # tests/native and tests/crop
def test_a_few_trials_of_every_area(name: str) -> None:
    result = run(named(name), 7, 600, limit=FEW[name])
    if result.unavailable:
        pytest.skip(result.unavailable)
    assert result.failures == []
    assert result.tried == FEW[name]


def test_areas_say_what_they_promise() -> None:
    assert [area.name for area in AREAS] == list(NAMES)
    assert all(area.promise and area.share > 0 for area in AREAS)


def planted(what: str) -> Area:
    """An area whose trial 2 does `what`."""

    @contextmanager
    def opened(folder: Path, seed: int) -> Iterator[Attempt]:
        if what == "unprepared":
            raise ValueError("can't be prepared")

        def attempt(rng: Random, number: int) -> str:
            if number == 4:
                raise Exhausted
            if number == 2 and what == "SIGSEGV":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif number == 2 and what == "hang":
                signal.pause()
            elif number == 2:
                raise KeyError("lost")
            return "well"

        yield attempt

    return Area(what, "nothing", opened, longest_s=3.0)


@pytest.mark.parametrize("what", ["SIGSEGV", "hang", "raises", "unprepared"])
def test_whatever_ends_a_trial_is_counted_and_not_the_end(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from tests.faults.harness.core import child; from tests.faults.test_harness import planted; "
        f"child(planted({what!r}), sys.argv[3:])"
    )
    monkeypatch.setattr("tests.faults.harness.controller._command", lambda: [sys.executable, "-c", code])
    result = run(planted(what), 0, 120)
    if what == "unprepared":
        assert [number for number, _ in result.failures] == [-1] and "can't be prepared" in result.failures[0][1]
        return
    assert result.tried == 4 and result.ended == {"well": 3}
    ((number, said),) = result.failures
    assert number == 2 and {"SIGSEGV": "SIGSEGV", "hang": "hangs", "raises": "KeyError"}[what] in said
    assert result.again(number) == f"python -m tests.faults --area {what} --seed 0 --trial 2"


def test_a_trial_is_the_same_whenever_it_is_tried() -> None:
    said: list[list[dict[str, Any]]] = [[], []]

    @contextmanager
    def opened(folder: Path, seed: int) -> Iterator[Attempt]:
        yield lambda rng, number: str(rng.random())

    area = Area("same", "nothing", opened)
    work(area, 5, 0, 4, 1e12, said[0].append)
    work(area, 5, 3, 1, 1e12, said[1].append)
    assert said[0][-2] == said[1][-2] and said[0][2] != said[0][4]


def test_damage_is_damage() -> None:
    rng = randomness("x", 0, 0)
    for data in (b"", b"x", bytes(9000), b"version 12, 34"):
        assert all(damaged(data, rng)[1] != data for _ in range(200))
    for text in ("", "x", "a\nb\nc"):
        assert all(mutated_text(text, rng)[1] != text for _ in range(200))
    value = {"a": [1, {"b": None}], "c": "text"}
    assert sum(mutated(value, rng)[1] != value for _ in range(200)) > 150
    assert value == {"a": [1, {"b": None}], "c": "text"}
    assert mutated({}, rng)[1] in ODD


def test_the_table_stands_between_its_marks() -> None:
    page = report.PAGE.read_text("utf-8")
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    result = Result(named("calls"), 0, 3)
    result.ended["answer"] += 3
    block = report.table([result], 1.0, 0)
    assert "| calls | " in block and "| 3 | 0 | 3 answer |" in block
    once = report.written(page, block)
    assert report.written(once, block) == once
    for area in AREAS:  # the page's table is of these areas
        assert f"| {area.name} | " in page
