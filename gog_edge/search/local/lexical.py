"""Text search of the index: FTS5 bm25, a boost for covered titles, and a second chance for misspelt words."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence

from gog_edge.search.local.rank import Scored, ordered
from gog_edge.search.local.store import Store
from gog_edge.search.local.text import STOP_WORDS, TextQuery, parse_query, quote, tokens

TITLE_WEIGHT = 4.0  # bm25 column weight of the title against 1 for the text
COVERAGE_BOOST = 0.5  # a title whose every word is in the query scores 1.5 times its bm25
MAX_VOCABULARY = 400_000
MAX_ENDING = 6  # letters of a word after its stem: popul-ation
# More matching rows than this are not all scored: rows that match every term are enough.
MAX_POSTINGS = 200_000


class Lexical:
    """Ranks entries against free text. Thread-safe; the vocabulary for misspelt words is read once, when needed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._vocabulary: dict[str, list[tuple[str, int]]] | None = None

    def rank(self, text: str, pool: int, *, spell: bool = True) -> list[Scored]:
        """At most `pool` entries, best first; the score is bm25 times the title boost.

        Ranks rows that match at least one word. In a big index where that is too many, rows that match every word.
        """
        query = parse_query(text)
        if not query:
            return []
        with self._store.database.use() as c:
            if spell:
                query = self._respell(c, query)
            found = self._match(c, query, pool)
        return self._boost_titles(found, text, query)

    def _match(self, c: sqlite3.Connection, query: TextQuery, pool: int) -> list[Scored]:
        expression = query.match_any()
        if len(query.terms) > 1 and _count(c, expression, MAX_POSTINGS) >= MAX_POSTINGS:
            found = _select(c, query.match_all(), pool)
            if found:
                return found
            rare = sorted(query.terms, key=lambda t: (_count(c, quote(t), MAX_POSTINGS), t))
            expression = TextQuery(tuple(rare[: max(1, len(rare) // 2)])).match_any()
        return _select(c, expression, pool)

    def _boost_titles(self, found: Sequence[Scored], text: str, query: TextQuery) -> list[Scored]:
        return boosted(found, self._store.titles([s.entity for s in found]), text, query.terms)

    # Misspelt words

    def _respell(self, c: sqlite3.Connection, query: TextQuery) -> TextQuery:
        """Words that no entry contains are replaced by the nearest word that one does, if any is near."""
        terms = [
            t if len(t) < 4 or " " in t or _count(c, quote(t), 1) else (self._nearest(c, t) or t) for t in query.terms
        ]
        return TextQuery(tuple(dict.fromkeys(terms)))

    def _nearest(self, c: sqlite3.Connection, term: str) -> str | None:
        """The stem that is nearest to the beginning of `term`: few mistakes first, then little left over."""
        allowed = 1 if len(term) < 7 else 2
        pairs = _bigrams(term)
        best: tuple[int, int, int, str] | None = None
        for stem, count in self._words(c).get(term[0], ()):
            # FTS5 keeps stems ("popul" for population), so a word may continue after one with an ending.
            if not -allowed <= len(term) - len(stem) <= allowed + MAX_ENDING:
                continue
            # A mistake breaks at most three pairs of neighbours (swapped letters).
            if len(pairs & _bigrams(stem)) < max(1, len(stem) - 1 - 3 * allowed):
                continue
            distance, ending = prefix_distance(term, stem, allowed)
            if distance <= allowed and ending <= MAX_ENDING:
                # "kazakhsta" is rather "kazakhstan" with a mistake than "kazakh" with an ending.
                key = (2 * distance + ending, distance, -count, stem)
                best = key if best is None or key < best else best
        return None if best is None else best[3]

    def _words(self, c: sqlite3.Connection) -> dict[str, list[tuple[str, int]]]:
        with self._lock:
            if self._vocabulary is None:
                by_letter: dict[str, list[tuple[str, int]]] = {}
                rows = c.execute("SELECT term, doc FROM entity_terms LIMIT ?", (MAX_VOCABULARY,))
                for word, count in rows:
                    if len(word) >= 4:
                        by_letter.setdefault(word[0], []).append((word, count))
                self._vocabulary = by_letter
            return self._vocabulary


def boosted(found: Sequence[Scored], titles: Mapping[int, str], text: str, terms: Iterable[str]) -> list[Scored]:
    """Best first, entries whose titles the query covers raised by up to `COVERAGE_BOOST`."""
    asked = set(tokens(text)) | {t for term in terms for t in tokens(term)}
    boost = {row: 1 + COVERAGE_BOOST * _coverage(title, asked) for row, title in titles.items()}
    return ordered([Scored(s.entity, s.score * boost.get(s.entity, 1.0)) for s in found])


def prefix_distance(term: str, stem: str, limit: int) -> tuple[int, int]:
    """Distance of `stem` to the nearest beginning of `term`, and how many letters of `term` are left after it.

    Optimal string alignment: insert, delete, replace, swap neighbours. Above `limit`, (`limit` + 1, 0).
    """
    before: list[int] = []
    row = list(range(len(stem) + 1))
    best = (row[-1], -len(term))
    for i, x in enumerate(term, start=1):
        before, last = row, before
        row = [i]
        for j, y in enumerate(stem, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == stem[j - 2] and term[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        # Of equal distances the longest beginning counts.
        best = min(best, (row[-1], i - len(term)), key=lambda d: (d[0], -d[1]))
        if min(row) > limit:
            break
    return (best[0], -best[1]) if best[0] <= limit else (limit + 1, 0)


def _bigrams(word: str) -> set[str]:
    return {word[i : i + 2] for i in range(len(word) - 1)}


def _coverage(title: str, asked: set[str]) -> float:
    """Share of the title's words (stop words aside) that the query has, 0..1."""
    words = [w for w in tokens(title) if w not in STOP_WORDS]
    return sum(w in asked for w in words) / len(words) if words else 0.0


def _select(c: sqlite3.Connection, expression: str, pool: int) -> list[Scored]:
    rows: Iterable[tuple[int, float]] = c.execute(
        f"SELECT rowid, bm25(entity_fts, {TITLE_WEIGHT}, 1.0) AS score FROM entity_fts "
        "WHERE entity_fts MATCH ? ORDER BY score, rowid LIMIT ?",
        (expression, pool),
    )
    return [Scored(int(row), -float(score)) for row, score in rows]


def _count(c: sqlite3.Connection, expression: str, limit: int) -> int:
    """Rows that match, counted up to `limit`."""
    row = c.execute(
        "SELECT count(*) FROM (SELECT 1 FROM entity_fts WHERE entity_fts MATCH ? LIMIT ?)", (expression, limit)
    ).fetchone()
    return int(row[0])
