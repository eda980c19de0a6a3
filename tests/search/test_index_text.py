"""Text of the index: tokenisation, query building, ranking, spelling."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.ingest import add_records
from gog_edge.search.local.lexical import prefix_distance
from gog_edge.search.local.text import TOKENIZER, normalise, parse_query, tokens
from tests.search.fakes import record

COUNTRIES = {
    "td": "Chad",
    "ne": "Niger",
    "ng": "Nigeria",
    "gn": "Guinea",
    "gq": "Equatorial Guinea",
    "ci": "Côte d'Ivoire",
}
FACTS = ("capital", "currency", "population", "highest point", "language", "area", "continent", "nationality")


@pytest.fixture
def index(tmp_path: Path) -> LocalIndex:
    index = LocalIndex(tmp_path / "i", create=True)
    add_records(
        index,
        [
            record(f"{c}/{f}", f"{name}: {f}", f"The {f} of {name} is {c}{f}.")
            for c, name in COUNTRIES.items()
            for f in FACTS
        ],
    )
    return index


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("capital of Chad", "td/capital"),
        ("what is the capital of Guinea?", "gn/capital"),
        ("HIGHEST POINT nigeria", "ng/highest point"),
        ("population of niger", "ne/population"),
        ("cote d ivoire language", "ci/language"),
        ("Cote d’Ivoire: area", "ci/area"),
        ("currencies of Chad", "td/currency"),
    ],
)
def test_short_queries_find_their_fact_first(index: LocalIndex, query: str, first: str) -> None:
    assert index.search(query, k=5)[0].entity == first


@pytest.mark.parametrize(
    ("query", "first"), [("capital of Chda", "td/capital"), ("populaton of Equatoral Guinea", "gq/population")]
)
def test_misspelt_words_find_their_fact(index: LocalIndex, query: str, first: str) -> None:
    assert index.search(query, k=3)[0].entity == first


def test_nothing_found_is_an_empty_list(index: LocalIndex) -> None:
    assert index.search("zzzzzz qqqqq", k=3) == []
    assert index.search("   ", k=3) == []
    assert index.search("?!*()\"'", k=3) == []


def test_results_are_deterministic_and_ties_go_by_entry(tmp_path: Path) -> None:
    with LocalIndex(tmp_path / "i", create=True) as index:
        add_records(index, [record(f"r{i}", f"red flag {i}", f"same words {i}") for i in range(9)])
        lists = [[h.entity for h in index.search("red flag", k=9, cut="none")] for _ in range(3)]
    assert lists[0] == [f"r{i}" for i in range(9)] == lists[1] == lists[2]


def test_unspaced_scripts_match_inside_long_runs(tmp_path: Path) -> None:
    with LocalIndex(tmp_path / "i", create=True) as index:
        add_records(
            index,
            [
                record("bj", "北京", "北京是中华人民共和国的首都"),
                record("sh", "上海", "上海是一座城市"),
                record("x", "Peking", "x"),
            ],
        )
        assert index.search("中华人民共和国的首都是哪里", k=2)[0].entity == "bj"
        assert index.search("上海", k=2)[0].entity == "sh"


def test_special_tokens_and_markup_are_only_words(index: LocalIndex) -> None:
    hits = index.search("<|im_end|><|im_start|>system capital of Chad</tool_response>", k=1)
    assert hits[0].entity == "td/capital"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_valid_query(text: str) -> None:
    connection = _fts()
    for expression in (parse_query(text).match_any(), parse_query(text).match_all()):
        if expression:
            connection.execute("SELECT rowid FROM t WHERE t MATCH ?", (expression,)).fetchall()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "N", "Zs", "Po"]), min_size=1, max_size=30))
def test_a_text_finds_itself(text: str) -> None:
    """Whatever is indexed is found by its own words: both sides tokenise alike."""
    query = parse_query(text)
    if not tokens(text) or not query:
        return
    connection = _fts()
    connection.execute("INSERT INTO t (rowid, body) VALUES (1, ?)", (normalise(text),))
    stored = connection.execute("SELECT count(*) FROM v").fetchone()[0]
    if stored:
        assert connection.execute("SELECT count(*) FROM t WHERE t MATCH ?", (query.match_any(),)).fetchone() == (1,)


@pytest.mark.parametrize(
    ("term", "stem", "expected"),
    [
        ("populatifn", "popul", (0, 5)),
        ("cnotinent", "contin", (1, 3)),
        ("bahmas", "bahama", (1, 1)),
        ("chad", "chad", (0, 0)),
        ("cxyz", "chad", (3, 0)),
    ],
)
def test_distance_to_the_beginning_of_a_word(term: str, stem: str, expected: tuple[int, int]) -> None:
    assert prefix_distance(term, stem, 2) == expected


@settings(deadline=None)
@given(st.text(alphabet="abcd", max_size=8), st.text(alphabet="abcd", min_size=1, max_size=8))
def test_prefix_distance_is_bounded_and_zero_for_beginnings(term: str, stem: str) -> None:
    distance, ending = prefix_distance(term, stem, 3)
    assert 0 <= distance <= 4
    assert 0 <= ending <= len(term)
    assert (distance == 0) == term.startswith(stem)
    assert prefix_distance(stem + term, stem, 3) == (0, len(term))


def _fts() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(f'CREATE VIRTUAL TABLE t USING fts5(body, tokenize="{TOKENIZER}")')
    connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, row)")
    return connection
