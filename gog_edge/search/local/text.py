"""Deterministic text handling of the index: what is stored in FTS5 and how a query becomes a MATCH expression.

Both sides go through `normalise`, then FTS5's own `porter unicode61 remove_diacritics 2`, told that marks belong to
words: the vowel signs of Hindi are marks. Scripts written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) and
Hangul, whose endings stick to the word, are split into single characters with their marks at index time; a query's
run of them becomes overlapping two-character phrases, so long unspaced questions still match.

User text never becomes FTS5 syntax: every term is a quoted string, quotes doubled, and the only operators are ours.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

TOKENIZER = "porter unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'"
MAX_TERMS = 32

# Scripts without spaces that have marks of their own, and Han and Hangul, which have none.
_MARKED = (range(0xE00, 0xF00), range(0x1000, 0x10A0), range(0x1780, 0x1800), range(0x3040, 0x3100))
_UNMARKED = "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0002fa1f"
# Left out in everyday writing: accents, Arabic vowels and the stretching tatweel, Hebrew points, the Devanagari dot
# below; and what only shapes glyphs.
_DROPPED = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08ff\u093c\u200d\ufe00-\ufe0f]|(?<=[\u0900-\u0dff])\u200c"
)
# Letters that Unicode does not decompose, as they are typed where a keyboard lacks them.
_LETTERS = str.maketrans(
    {"\u0142": "l", "\u00f8": "o", "\u00e6": "ae", "\u0153": "oe", "\u0111": "d", "\u00f0": "d", "\u00fe": "th",
     "\u0127": "h", "\u0167": "t", "\u0131": "i", "\u014b": "ng"}
)  # fmt: skip
_WORD = re.compile(r"[^\W_]+")  # without marks
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Words that carry no meaning of their own in a question; dropped only where another word is left.
_STOP_WORDS = """
a an and any are as at be by can could did do does for from had has have how i in into is it its many me much my
name of on or please shown show tell that the their there these this those to was were what when where
which who whom whose why will with would you your image picture photo
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class _Patterns:
    """`word`: letters and digits, each with its marks. `character`: one of an unspaced script. `run`: several."""

    word: re.Pattern[str]
    character: re.Pattern[str]
    run: re.Pattern[str]


@functools.cache
def _patterns() -> _Patterns:
    """Python's expressions know no marks, so they are listed: some 40 ms, once."""
    points = [*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)]
    marks = {n for n in points if unicodedata.category(chr(n))[0] == "M"}
    bases = _ranges([n for block in _MARKED for n in block if n not in marks]) + _UNMARKED
    mark = f"[{_ranges(sorted(marks))}]"
    character = f"[{bases}]{mark}*"
    return _Patterns(
        re.compile(rf"[^\W_]+(?:{mark}+[^\W_]*)*"), re.compile(f"({character})"), re.compile(f"(?:{character})+")
    )


def _ranges(points: Sequence[int]) -> str:
    """Ascending code points as the inside of a character class."""
    found: list[list[int]] = []
    for n in points:
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in found)


def fold(text: str) -> str:
    """NFKC, case folded (ß is ss, ø is o), no marks that are left out in writing, no control characters, no lone
    surrogates."""
    if text.isascii():
        return _CONTROL.sub(" ", text).lower()
    clean = _CONTROL.sub(" ", unicodedata.normalize("NFKC", text))
    plain = _DROPPED.sub("", unicodedata.normalize("NFKD", clean.casefold())).translate(_LETTERS)
    return unicodedata.normalize("NFKC", plain).encode("utf-8", "replace").decode("utf-8")


def tokens(text: str) -> list[str]:
    """Folded words in order, unspaced scripts as single characters."""
    folded = fold(text)
    if folded.isascii():
        return _WORD.findall(folded)
    patterns = _patterns()
    return patterns.word.findall(patterns.character.sub(r" \1 ", folded))


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
    for word in _patterns().word.findall(fold(text)):
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
    for run in _patterns().run.finditer(word):
        if run.start() > at:
            parts.append(word[at : run.start()])
        chars = _patterns().character.findall(run.group())
        parts += [f"{a} {b}" for a, b in pairwise(chars)] or chars
        at = run.end()
    if at < len(word):
        parts.append(word[at:])
    return parts
