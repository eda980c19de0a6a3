"""Deterministic text handling of the index: what is stored in FTS5 and how a query becomes a MATCH expression.

Both sides go through `normalise`, then FTS5's own `porter unicode61 remove_diacritics 2`. Scripts written without
spaces (Han, kana, Thai) are split into single characters at index time; a query's
run of them becomes overlapping two-character phrases, so long unspaced questions still match.

User text never becomes FTS5 syntax: every term is a quoted string, quotes doubled, and the only operators are ours.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise

TOKENIZER = "porter unicode61 remove_diacritics 2"
MAX_TERMS = 32

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_UNSPACED_CHAR = re.compile(f"([{_UNSPACED}])")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = re.compile(r"[^\W_]+")
_DIACRITIC = re.compile("[\u0300-\u036f]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Words that carry no meaning of their own in a question; dropped only where another word is left.
_STOP_WORDS = """
a an and any are as at be by can could did do does for from had has have how i in into is it its many me much my
name of on or please shown show tell that the their there these this those to was were what when where
which who whom whose why will with would you your image picture photo
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def fold(text: str) -> str:
    """NFKC, case folded (ß is ss), no Latin diacritics, no control characters, no lone surrogates."""
    clean = _CONTROL.sub(" ", unicodedata.normalize("NFKC", text))
    plain = _DIACRITIC.sub("", unicodedata.normalize("NFKD", clean.casefold()))
    return unicodedata.normalize("NFKC", plain).encode("utf-8", "replace").decode("utf-8")


def tokens(text: str) -> list[str]:
    """Folded words in order, unspaced scripts as single characters."""
    return _WORD.findall(_UNSPACED_CHAR.sub(r" \1 ", fold(text)))


def normalise(text: str) -> str:
    """What the full-text table is given: words only, so that SQLite's idea of a separator never matters."""
    return " ".join(tokens(text))


@dataclass(frozen=True)
class TextQuery:
    """A parsed query: `terms` as FTS5 sees them (each one a word or a two-character phrase), best parts only."""

    terms: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.terms)

    def match_all(self) -> str:
        """MATCH expression: every term."""
        return " AND ".join(quote(t) for t in self.terms)

    def match_any(self) -> str:
        """MATCH expression: at least one term."""
        return " OR ".join(quote(t) for t in self.terms)


def parse_query(text: str) -> TextQuery:
    """Terms of a free text query, at most `MAX_TERMS`, without repeats; stop words go where other words are left."""
    terms: dict[str, None] = {}
    weak: dict[str, None] = {}
    for word in _WORD.findall(fold(text)):
        for run in _split_scripts(word):
            (weak if run in STOP_WORDS else terms)[run] = None
    return TextQuery(tuple(terms or weak)[:MAX_TERMS])


def quote(term: str) -> str:
    """An FTS5 string literal."""
    return '"' + term.replace('"', '""') + '"'


def _split_scripts(word: str) -> list[str]:
    """`word` cut at script borders; an unspaced run becomes two-character phrases ("ab" -> "a b")."""
    parts: list[str] = []
    at = 0
    for run in _UNSPACED_RUN.finditer(word):
        if run.start() > at:
            parts.append(word[at : run.start()])
        chars = run.group()
        parts += [f"{a} {b}" for a, b in pairwise(chars)] or [chars]
        at = run.end()
    if at < len(word):
        parts.append(word[at:])
    return parts
