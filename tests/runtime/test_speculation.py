"""Guessing ahead: found, verified, never costly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import UsageError
from gog_edge.runtime.speculation import (
    GuessMemory,
    Remembered,
    RowCosts,
    Speculation,
    SpeculationControl,
    SuffixIndex,
)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_what_followed_the_same_words_is_guessed() -> None:
    index = SuffixIndex()
    tokens = ids(1, 2, 3, 4, 5, 6, 9, 2, 3)
    assert index.draft(tokens, 3) == [4, 5, 6]
    assert index.match == 2
    assert index.draft(ids(1, 2, 3, 4, 5, 6, 9, 2, 3, 4), 2) == [5, 6]
    assert index.match == 3
    assert index.draft(ids(1, 2, 3, 4, 5, 6, 9, 2, 3, 4, 8), 2) == []
    assert index.match == 0


def test_the_longest_match_wins_and_of_equals_the_newest() -> None:
    index = SuffixIndex()
    assert index.draft(ids(7, 1, 2, 3, 5, 0, 1, 2, 3, 6, 0, 9, 2, 3, 8, 0, 7, 1, 2, 3), 2) == [5, 0]
    assert index.match == 4
    assert SuffixIndex().draft(ids(1, 2, 5, 1, 2, 6, 1, 2), 1) == [6]
    assert SuffixIndex(least=3).draft(ids(1, 2, 5, 1, 2), 1) == []
    assert SuffixIndex(least=1).draft(ids(2, 5, 3, 2), 2) == [5, 3]


def test_image_tokens_are_never_guessed() -> None:
    index = SuffixIndex(never=frozenset({7}))
    assert index.draft(ids(1, 2, 3, 7, 7, 5, 1, 2), 4) == [3]
    assert index.draft(ids(1, 2, 3, 7, 7, 5, 1, 2, 3), 4) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=60),
    st.lists(st.integers(1, 10), max_size=6),
    st.integers(1, 3),
)
def test_a_guess_always_follows_an_equal_run(tokens: list[int], cuts: list[int], least: int) -> None:
    """Also after the conversation was cut and went on otherwise, with the index kept."""
    index = SuffixIndex(least, 5)
    sequences = [tokens]
    for cut in cuts:
        kept = sequences[-1][: max(len(sequences[-1]) - cut, 2)]
        sequences.append([*kept, *reversed(tokens)])
    for sequence in sequences:
        guess, n = index.draft(np.array(sequence, np.int32), 5), index.match
        assert bool(guess) == bool(n)
        if guess:
            assert least <= n <= 5
            assert any(
                sequence[i : i + n] == sequence[-n:] and sequence[i + n : i + n + len(guess)] == guess
                for i in range(len(sequence) - n)
            )
    longest = max(
        (n for n in range(least, 6) for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]), default=0
    )
    assert (SuffixIndex(least, 5).draft(np.array(tokens, np.int32), 5) != []) == (longest > 0)


def test_what_was_written_in_other_conversations_is_remembered() -> None:
    said = Remembered()
    assert said.index.draft(said.tokens, 4, ids(1, 2, 3)) == []
    said.add([50, 51, 52, 53], [10, 11, 12, 13, 14], most=12)
    assert said.index.draft(said.tokens, 3, ids(9, 52, 53)) == [10, 11, 12]
    assert said.index.match == 2
    assert said.index.draft(said.tokens, 9, ids(51, 52, 53, 10, 11)) == [12, 13, 14]
    assert said.index.match == 5
    for number in range(40):  # old turns go
        said.add([], [100 + number, 200, 201, 202], most=12)
        assert len(said.tokens) <= 24
    assert said.index.draft(said.tokens, 3, ids(52, 53, 10, 11)) == []
    assert said.index.draft(said.tokens, 2, ids(139, 200)) == [201, 202]
    assert said.index.match == 2


CURVES = {
    "nearly free": [1 + 0.02 * k for k in range(9)],
    "a 2B policy on two cores": [1, 1.10, 1.27, 1.40, 1.85, 2.0, 2.16, 2.31, 2.56],
    "dear": [1 + 0.5 * k for k in range(9)],
    "no gain at all": [1.0 + k for k in range(9)],
}


def write(
    control: SpeculationControl, curve: Sequence[float], chance: float, tokens: int, rng: np.random.Generator
) -> float:
    """Steps that a turn of `tokens` took whose guesses are right with `chance`, token by token."""
    control.begin()
    spent, written = 0.0, 0
    while written < tokens:
        guess = [0] * min(8, tokens - written - 1)
        count, right = control.length(len(guess), 3), 0
        while right < len(guess) and rng.random() < chance:
            right += 1
        accepted = min(right, count)
        spent += curve[count]
        control.ran(count, accepted, curve[count] * float(rng.normal(1, 0.02)))
        control.memory.chances.learn(3, guess, [0] * right + [1] if right < len(guess) else guess)
        written += accepted + 1
    return spent


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_no_turn_is_slower_by_more_than_two_percent(curve: list[float], chance: float) -> None:
    """Once the costs of a machine are known; to learn them, each size of a run is tried once."""
    for tokens in (20, 40, 200):
        for seed in range(20):
            rng, memory = np.random.default_rng(seed), GuessMemory()
            for rows, cost in [*enumerate(curve, 1)][1:] * 20:
                memory.costs.learn(rows, cost)
            for _ in range(2):  # questions
                control = SpeculationControl(Speculation(), memory)
                for _ in range(2):
                    assert write(control, curve, chance, tokens, rng) <= 1.02 * tokens, (tokens, seed)


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_learning_what_a_machine_costs_is_paid_out_of_all_turns(curve: list[float]) -> None:
    rng, memory = np.random.default_rng(1), GuessMemory()
    spent, turns = 0.0, 100
    for _ in range(turns):
        spent += write(SpeculationControl(Speculation(), memory), curve, 0.1, 40, rng)
        assert memory.costs.balance > -1.5
    assert spent <= 1.02 * 40 * turns
    first = SpeculationControl(Speculation())
    assert write(first, curve, 0.0, 20, rng) <= 20  # nothing is tried yet


def test_good_guesses_pay() -> None:
    rng, memory = np.random.default_rng(0), GuessMemory()
    turns = [write(SpeculationControl(Speculation(), memory), CURVES["nearly free"], 0.9, 100, rng) for _ in range(10)]
    assert np.mean(turns[5:]) < 40


def test_chances_are_learnt_from_guesses_that_were_not_run() -> None:
    """So a text that begins to repeat is noticed after nothing was guessed for long."""
    rng, memory = np.random.default_rng(0), GuessMemory()
    control, curve = SpeculationControl(Speculation(), memory), CURVES["a 2B policy on two cores"]
    for chance, most in ((0.0, 1.02), (1.0, 0.7)):
        for _ in range(10):
            took = write(control, curve, chance, 60, rng) / 60
        assert took <= most


def test_a_hiccup_of_the_machine_is_forgotten() -> None:
    costs = RowCosts()
    costs.learn(2, 9.0)
    assert costs.likely[2] == 2.0  # another row takes no more than a run of its own
    for _ in range(3):
        costs.steps += 1000
        costs.settle()
    assert costs.likely[2] < costs.bound[2]  # as if it had never been run


def test_fixed_length_and_off() -> None:
    assert SpeculationControl(Speculation(adaptive=False, max_draft=5)).length(9, 2) == 5
    assert SpeculationControl(Speculation(max_draft=0)).length(9, 2) == 0
    for bad in (
        {"max_draft": 65},
        {"ngram_min": 0},
        {"ngram_min": 5, "ngram_max": 4},
        {"ngram_max": 17},
        {"remember": -1},
        {"max_loss": 2.0},
    ):
        with pytest.raises(UsageError):
            Speculation(**bad)


def test_a_step_beside_others_teaches_no_costs() -> None:
    """What a run takes that others had part in depends on them; a deadline has to know it all the same."""
    control = SpeculationControl(Speculation())
    control.begin()
    control.ran(0, 0, 0.010)
    before = list(control.memory.costs.likely), control.single_s, control.stats.steps
    for _ in range(20):
        control.ran_beside(2, 1, 0.030)
    assert (list(control.memory.costs.likely), control.single_s, control.stats.steps - 20) == before
    assert control.beside_s == pytest.approx(0.030) and control.stats.accepted == 20
    control.ran(0, 0, 0.010)
    assert control.beside_s is None and control.single_s == pytest.approx(0.010)
