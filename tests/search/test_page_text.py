"""Readable text of pages and its passages: boilerplate goes, facts stay, hostile markup costs bounded time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gog_edge.search.passages import best_passages, bm25, rank_passages, split_passages
from gog_edge.search.web.extract import extract

LONG = "The quick brown fox jumps over the lazy dog while the sun sets slowly behind the distant hills. "


def test_boilerplate_goes_and_content_stays() -> None:
    page = f"""
    <html><head><title> The  title </title><style>p {{}}</style></head><body>
    <header><a href=a>Home</a></header>
    <div class="cookie-consent">We use cookies and other technologies here, so please accept them all.</div>
    <div id="content"><h1>Heading</h1><p>{LONG * 2}</p><h2>Sub</h2><p>{LONG}<a href=x>link</a></p>
    <p>Short.</p><p>{LONG}</p><ul class="related-links"><li><a href=1>{LONG}</a></li></ul></div>
    <script>var x = "<p>{LONG} script</p>";</script><div style="x" hidden>{LONG} hidden</div>
    <footer>{LONG} footer</footer></body></html>"""
    found = extract(page)
    assert found.title == "The title"
    for gone in ("cookies", "script", "hidden", "footer", "Home"):
        assert gone not in found.text
    assert found.text.index("Heading") < found.text.index("Sub") < found.text.index("Short.")
    assert found.text.count("quick brown") == 4


def test_main_wins_tables_become_lines_entities_are_decoded() -> None:
    page = f"""<div><p>{LONG}</p></div><article><h1>A &amp; B</h1><p>{LONG * 4}</p>
    <table><tr><th>Capital<td>N&#39;Djamena<tr><th>Area<td>1,284,000</table><pre>a
    b</pre></article>"""
    found = extract(page)
    assert "Capital | N'Djamena" in found.text
    assert "Area | 1,284,000" in found.text
    assert found.text.count("quick brown") == 4
    assert found.title == "A & B"


def test_a_page_without_articles_keeps_its_words() -> None:
    assert extract("<b>42</b>").text == "42"
    assert extract("just words").text == "just words"
    assert extract("").text == ""


HOSTILE = {
    "open": "<" * 400_000,
    "comment": "<!--" * 100_000,
    "nesting": "<div>" * 200_000 + LONG,
    "attributes": "<a " + "x=1 " * 200_000 + ">" + LONG,
    "entities": "&" * 400_000,
    "cdata": "<![CDATA[" * 50_000,
    "unclosed": "<script>" + "</scrip" * 50_000,
    "declaration": "<!DOCTYPE " * 50_000,
    "blocks": "<p>a" * 300_000,
    "class": f'<div class="{"nav-" * 100_000}">{LONG}</div>',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_markup_costs_bounded_time(name: str) -> None:
    began = time.monotonic()
    extract(HOSTILE[name])
    assert time.monotonic() - began < 5


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>/!-[]&;#\"'= abpdivtrh1", max_size=200))
@example("<![a;")
@example("<![1 text")
@example("<p>before</p><![1>after")
def test_any_markup_can_be_read(page: str) -> None:
    extract(page)


FACTS = [f"Sentence number {i} talks about topic{i} and nothing else of any interest to anybody. " for i in range(200)]


def test_the_passage_with_the_answer_is_found_in_milliseconds() -> None:
    text = " ".join(FACTS[:120]) + " The capital of Chad is N'Djamena. " + " ".join(FACTS[120:])
    began = time.perf_counter()
    found = best_passages(text, "what is the capital of Chad?", chars=500)
    assert time.perf_counter() - began < 0.25
    assert "N'Djamena" in found
    assert len(found) <= 500


def test_excerpts_follow_the_page_and_mark_gaps() -> None:
    text = "\n".join(FACTS)
    found = best_passages(text, "topic150 topic3", chars=900)
    assert found.index("topic3 ") < found.index("topic150")
    assert "…" in found
    assert best_passages(text, "", chars=300).startswith("Sentence number 0")
    assert best_passages(text, "zzz", chars=300).startswith("Sentence number 0")
    assert best_passages("short text", "anything", chars=300) == "short text"
    assert len(best_passages("x" * 5000, "y", chars=100)) <= 100


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=800), st.text(max_size=30), st.integers(20, 300))
def test_passages_are_bounded_and_lose_nothing(text: str, query: str, chars: int) -> None:
    found = best_passages(text, query, chars=chars)
    assert len(found) <= chars + 3
    kept = "".join("".join(split_passages(text, 50)).split())
    assert kept == "".join(text.split())


def test_bm25_prefers_rare_words_and_short_passages() -> None:
    scores = bm25(
        ["river river water", "water", "the water of the sea and the water of the lake", "Flüsse"], "water rivers"
    )
    assert scores[0] == max(scores)
    assert scores[1] > scores[2] > scores[3] == 0
    assert bm25([], "x") == []


def test_an_embedder_can_overrule_words() -> None:
    class Meaning:
        def embed_texts(self, texts: object) -> np.ndarray:
            rows = [[1.0, 0.0] if ("feline" in t or "cat" in t) else [0.0, 1.0] for t in texts]  # type: ignore[attr-defined]
            return np.array(rows, np.float32)

    passages = ["the dog sleeps", "a feline sleeps", "nothing here"]
    assert rank_passages(passages, "where is the cat")[0].score == 0
    assert rank_passages(passages, "where is the cat", Meaning())[0].entity == 1
