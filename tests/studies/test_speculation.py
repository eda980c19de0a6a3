"""Replaying transcripts with guesses: counts, times, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gog_edge.runtime.speculation import Speculation
from studies.speculation import SHORT, Transcript, main, replay, short_turns

COSTS = [1.0, 1.02, 1.04, 1.06]


def _transcript(tokens: list[int], first_written: int) -> Transcript:
    written = np.arange(len(tokens)) >= first_written
    return Transcript(np.asarray(tokens, np.int32), written, frozenset({0}))


def test_copied_text_is_guessed() -> None:
    text = list(range(10, 60))
    outcome = replay([_transcript(text * 6, 50)], Speculation(), COSTS)
    assert outcome.stats.steps + outcome.stats.accepted == 250
    assert outcome.plain_seconds == pytest.approx(250)
    assert outcome.stats.accept_rate > 0.9
    assert outcome.seconds < 100  # nothing is tried in the first fifty steps


@pytest.mark.parametrize("costs", [COSTS, [1.0, 2.0], [1.0]])
def test_random_text_loses_next_to_nothing(costs: list[float]) -> None:
    tokens = np.random.default_rng(0).integers(1, 40, 1500).tolist()  # bigrams recur, what follows them does not
    outcome = replay([_transcript(tokens, 500)], Speculation(), costs)
    assert outcome.stats.steps + outcome.stats.accepted == 1000
    assert outcome.seconds <= 1.03 * outcome.plain_seconds


def test_nothing_written_and_nothing_guessed() -> None:
    assert replay([_transcript([1, 2, 3], 3)], Speculation(), COSTS).seconds == 0
    off = replay([_transcript([1, 2, 1, 2, 1, 2], 2)], Speculation(0), COSTS)
    assert (off.stats.steps, off.stats.drafted, off.seconds) == (4, 0, 4.0)


def test_only_what_the_policy_wrote_counts() -> None:
    tokens = np.asarray([1, 2, 3, 4, 1, 2, 3, 4, 9, 9, 1, 2, 3, 4], np.int32)
    written = np.asarray([False] * 4 + [True] * 4 + [False] * 2 + [True] * 4)
    outcome = replay([Transcript(tokens, written, frozenset())], Speculation(adaptive=False), COSTS)
    assert outcome.stats.steps + outcome.stats.accepted == 8


@pytest.mark.parametrize("costs", [COSTS, [1.0, 1.1, 1.27, 1.4, 1.85], [1.0, 2.0]])
def test_short_turns_lose_no_more_than_two_percent(costs: list[float]) -> None:
    for tokens in SHORT:
        assert short_turns(costs, tokens, 0.1, known=True) <= 1.02


def test_what_was_written_in_an_earlier_conversation_is_guessed() -> None:
    call = list(range(10, 60))
    talks = [_transcript([*range(100 + 60 * i, 150 + 60 * i), *call], 50) for i in range(6)]
    ratio = {n: (o := replay(talks, Speculation(remember=n), COSTS)).seconds / o.plain_seconds for n in (0, 4096)}
    assert ratio[0] > 0.99
    assert ratio[4096] < 0.6


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("")
    for costs in ("0", "a,b"):
        assert main([str(tmp_path), "--questions", str(questions), "--costs", costs]) == 2
    assert main([str(tmp_path / "none"), "--questions", str(questions)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
