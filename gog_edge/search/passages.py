"""Cutting a page to the passages that match a query: BM25 in memory, optionally fused with a text embedder.

Milliseconds instead of a language model that summarises. Passages are whole sentences or lines, overlap by none, and
are given back in the order of the page, so that the result reads as an excerpt.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gog_edge.search.local.rank import Scored, fuse, ordered
from gog_edge.search.local.text import STOP_WORDS, tokens

PASSAGE_CHARS = 400
MAX_PASSAGES = 2000
MAX_EMBEDDED, FIRST = (
    12,
    4,
)  # by words, and from the beginning of the page: an encoder takes tens of milliseconds for each
# Robertson, Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
K1, B = 1.2, 0.75

_SENTENCE_END = re.compile(r"(?<=[.!?。！？…])[\"')\]»”’]*\s+|(?<=[。！？])")


class TextEmbedder(Protocol):
    """Turns texts into unit vectors."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, d] float32, each row of unit length."""
        ...


def split_passages(text: str, size: int = PASSAGE_CHARS) -> list[str]:
    """Passages of at most about `size` characters: lines, sentences of long lines, and pieces of endless ones."""
    passages: list[str] = []
    current = ""
    for line in text.splitlines():
        line = line.strip()
        if not line:
            continue
        for sentence in _sentences(line, size):
            if current and len(current) + 1 + len(sentence) > size:
                passages.append(current)
                current = ""
            current = f"{current} {sentence}".strip()
            if len(passages) >= MAX_PASSAGES:
                return passages
        if len(current) >= size // 2:
            passages.append(current)
            current = ""
    return [*passages, current] if current else passages


def best_passages(text: str, query: str, *, chars: int = 1200, embedder: TextEmbedder | None = None) -> str:
    """At most `chars` characters of `text` that match `query`, in the order of the page, joined by " … ".

    Without a query, or where no word of it occurs, the beginning of the text.
    """
    passages = split_passages(text, min(PASSAGE_CHARS, chars))
    if sum(map(len, passages)) + len(passages) <= chars:
        return "\n".join(passages)
    ranked = rank_passages(passages, query, embedder)
    if not ranked or ranked[0].score <= 0:
        ranked = [Scored(i, -float(i)) for i in range(len(passages))]
    taken: set[int] = set()
    left = chars
    for item in ranked:
        cost = len(passages[item.entity]) + 3
        if cost > left:
            if not taken:
                return passages[item.entity][:chars]
            continue
        if item.score <= 0 and taken and ranked[0].score > 0:
            break
        taken.add(item.entity)
        left -= cost
    return _join(passages, sorted(taken))


def rank_passages(passages: Sequence[str], query: str, embedder: TextEmbedder | None = None) -> list[Scored]:
    """Passages by number, best first; with an embedder, BM25 and cosine by reciprocal rank fusion."""
    lexical = ordered([Scored(i, s) for i, s in enumerate(bm25(passages, query))])
    if embedder is None or not passages or not query.strip():
        return lexical
    # Meaning re-ranks what words found, and the beginning of the page: a long page must not cost seconds.
    chosen = sorted({s.entity for s in lexical[:MAX_EMBEDDED]} | set(range(min(FIRST, len(passages)))))
    vectors = embedder.embed_texts([query, *(passages[i] for i in chosen)])
    cosine = vectors[1:] @ vectors[0]
    semantic = ordered([Scored(i, float(c)) for i, c in zip(chosen, cosine)])
    return fuse([([s for s in lexical if s.score > 0], 1.0), (semantic, 1.0)])


def bm25(passages: Sequence[str], query: str) -> list[float]:
    """BM25 of every passage; the collection is the page itself."""
    asked = set(tokens(query))
    asked = {_stem(t) for t in asked - STOP_WORDS} or {_stem(t) for t in asked}
    counts = [Counter(t for t in map(_stem, tokens(p)) if t in asked) for p in passages]
    lengths = [len(p) for p in passages]
    average = sum(lengths) / max(len(lengths), 1) or 1.0
    found = Counter(t for c in counts for t in c)
    n = len(passages)
    idf = {t: math.log(1 + (n - f + 0.5) / (f + 0.5)) for t, f in found.items()}
    scores: list[float] = []
    for count, length in zip(counts, lengths):
        norm = K1 * (1 - B + B * length / average)
        scores.append(sum(idf[t] * f * (K1 + 1) / (f + norm) for t, f in sorted(count.items())))
    return scores


def _stem(word: str) -> str:
    """Plural and simple endings off, so that "rivers" finds "river"; crude on purpose, and the same on both sides."""
    for ending in ("ies", "es", "s"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def _sentences(line: str, size: int) -> list[str]:
    if len(line) <= size:
        return [line]
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(line):
        sentence = sentence.strip()
        while len(sentence) > size:
            cut = sentence.rfind(" ", size // 2, size)
            cut = size if cut < 0 else cut
            pieces.append(sentence[:cut].strip())
            sentence = sentence[cut:].strip()
        if sentence:
            pieces.append(sentence)
    return pieces


def _join(passages: Sequence[str], chosen: Sequence[int]) -> str:
    text = ""
    for at, number in enumerate(chosen):
        gap = "" if at == 0 else "\n" if number == chosen[at - 1] + 1 else " …\n"
        text += gap + passages[number]
    return text
