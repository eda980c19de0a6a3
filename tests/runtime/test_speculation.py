"""Guessing ahead: found, verified, never costly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.errors import UsageError
from gog_edge.runtime.speculation import PromptLookup, Speculation, SpeculationControl


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_what_followed_the_same_words_is_guessed() -> None:
    lookup = PromptLookup(Speculation(ngram_min=2, ngram_max=4))
    tokens = ids(1, 2, 3, 4, 5, 6, 9, 2, 3)
    assert lookup.draft(tokens, 3) == [4, 5, 6]
    assert lookup.match == 2
    assert lookup.draft(ids(1, 2, 3, 4, 5, 6, 9, 2, 3, 4), 2) == [5, 6]
    assert lookup.match == 3
    assert lookup.draft(ids(1, 2, 3, 4, 5, 6, 9, 2, 3, 4, 8), 2) == []


def test_image_tokens_are_never_guessed() -> None:
    lookup = PromptLookup(Speculation(), never=frozenset({7}))
    assert lookup.draft(ids(1, 2, 3, 7, 7, 5, 1, 2), 4) == [3]
    assert lookup.draft(ids(1, 2, 3, 7, 7, 5, 1, 2, 3), 4) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.lists(st.integers(1, 10), max_size=6))
def test_a_guess_always_follows_an_equal_run(tokens: list[int], cuts: list[int]) -> None:
    """Also after the conversation was cut and went on otherwise, with the index kept."""
    lookup = PromptLookup(Speculation(ngram_min=2, ngram_max=3))
    sequences = [tokens]
    for cut in cuts:
        kept = sequences[-1][: max(len(sequences[-1]) - cut, 2)]
        sequences.append([*kept, *reversed(tokens)])
    for sequence in sequences:
        array = np.array(sequence, np.int32)
        guess = lookup.draft(array, 5)
        if guess:
            n = lookup.match
            gram = sequence[-n:]
            assert any(
                sequence[i : i + n] == gram and sequence[i + n : i + n + len(guess)] == guess
                for i in range(len(sequence) - n)
            )


def simulate(chance: float, extra_per_row: float, steps: int = 400, seed: int = 0) -> tuple[float, float]:
    """(time with guessing, time without) for guesses that are right with `chance`, in units of one step."""
    rng = np.random.default_rng(seed)
    control = SpeculationControl(Speculation())
    spent, written = 0.0, 0
    while written < steps:
        count = control.length(8, 3)
        right = 0
        while right < count and rng.random() < chance:
            right += 1
        seconds = (1 + extra_per_row * count) * float(rng.normal(1, 0.02))
        control.ran(count, right, 3, seconds)
        spent += seconds
        written += right + 1
    return spent, float(written)


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("extra", [0.02, 0.3, 1.0])
def test_never_slower_by_more_than_three_percent(chance: float, extra: float) -> None:
    spent, plain = simulate(chance, extra)
    assert spent <= 1.03 * plain


def test_good_guesses_pay() -> None:
    spent, plain = simulate(0.9, 0.05)
    assert spent < 0.45 * plain


def test_fixed_length_and_off() -> None:
    assert SpeculationControl(Speculation(adaptive=False, max_draft=5)).length(9, 2) == 5
    assert SpeculationControl(Speculation(max_draft=0)).length(9, 2) == 0
    for bad in ({"max_draft": 65}, {"ngram_min": 0}, {"ngram_min": 5, "ngram_max": 4}):
        with pytest.raises(UsageError):
            Speculation(**bad)
