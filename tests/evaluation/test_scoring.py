"""Metrics as published, with cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.evaluation.scoring import (
    exact_match,
    normalise,
    score,
    substring_match,
    token_f1,
    token_recall,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("An apple a day", "apple day"),
        ("N'Djamena", "ndjamena"),
        ("1,284,000", "1284000"),
        ("theatre", "theatre"),
        ("北京。", "北京。"),
    ],
)
def test_normalisation_is_search_r1s(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_matches() -> None:
    assert exact_match("the Eiffel tower.", ["Louvre", "Eiffel Tower"]) == 1
    assert exact_match("It is the Eiffel Tower", ["Eiffel Tower"]) == 0
    assert substring_match("It is the Eiffel Tower", ["Eiffel Tower"]) == 1
    assert substring_match("Eiffel", ["Eiffel Tower"]) == 0
    assert exact_match("", [""]) == 0
    assert substring_match("anything", ["", "the", "!"]) == 0


def test_token_metrics() -> None:
    assert token_recall("the red big car", ["red car", "blue car today"]) == 1.0
    assert token_recall("car", ["red car"]) == 0.5
    assert token_f1("red car", ["red big car"]) == pytest.approx(2 * 2 / (2 + 3))
    assert token_f1("a a b", ["a b b"]) == pytest.approx(2 * 1 / (1 + 2))  # "a" is an article
    assert token_recall("是北京市", ["北京"]) == 1.0
    assert token_f1("", ["x"]) == token_recall("x", []) == 0.0


@settings(deadline=None)
@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=4))
def test_metrics_are_shares_and_ordered(prediction: str, answers: list[str]) -> None:
    found = score(prediction, answers)
    assert all(0.0 <= v <= 1.0 for v in found.values())
    assert found["em"] <= found["subem"]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_an_answer_matches_itself(text: str) -> None:
    if normalise(text):
        assert exact_match(text, ["other", text]) == 1.0
