"""Ranking rules: reciprocal rank fusion, how many results are shown, deterministic order.

All are stated in docs/search.md; none depends on the clock, on hashes or on the order of insertion beyond the
entity's own number, so the same index and query give the same list on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import median

from gog_edge.search.base import Cut
from gog_edge.search.local.text import STOP_WORDS, tokens

# Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
# SIGIR 2009: score(d) = sum over rankings of 1 / (k + rank(d)), k = 60.
RRF_K = 60.0
# In a hybrid search the picture leads: a label is the policy's guess, the picture is what was there.
IMAGE_WEIGHT, TEXT_WEIGHT = 1.0, 0.5
# Share of the way from background to best that a result must reach to be shown (see `dynamic_count`).
KEEP_TEXT, KEEP_IMAGE = 0.35, 0.5
# The rule of ViDoRAG (see `mixture_count`).
POOL, LEAST, MOST = 20, 5, 10
_ROUNDS = 200
_NARROWEST = 0.02  # of the range of the scores: ties must not make a component a point


@dataclass(frozen=True)
class Scored:
    """An entity's row number and its score in one ranking (higher is better)."""

    entity: int
    score: float


def ordered(scored: Sequence[Scored]) -> list[Scored]:
    """Best first; equal scores (to 1e-9) by entity number."""
    return sorted(scored, key=lambda s: (-round(s.score, 9), s.entity))


def fuse(rankings: Sequence[tuple[Sequence[Scored], float]]) -> list[Scored]:
    """Weighted reciprocal rank fusion of (ranking best first, weight) pairs."""
    total: dict[int, float] = {}
    for ranking, weight in rankings:
        for rank, item in enumerate(ranking, start=1):
            total[item.entity] = total.get(item.entity, 0.0) + weight / (RRF_K + rank)
    return ordered([Scored(entity, score) for entity, score in total.items()])


def dynamic_count(scores: Sequence[float], k: int, *, keep: float, floor: float | None = None) -> int:
    """How many of the best results are worth showing, between 1 and `k` (0 for no scores).

    The pool's background is the median of the scores after the first `k` (what an arbitrary entry scores), or
    `floor` where fewer than four are left. A result stays while its score is at least
    background + `keep` * (best - background): `keep` 0 keeps all, 1 keeps only ties with the best.

    `scores`: best first, from one ranking.
    """
    if not scores:
        return 0
    tail = scores[k:]
    if len(tail) >= 4:
        background = float(median(tail))
    elif floor is not None:
        background = floor
    else:
        background = float(scores[-1])
    best = scores[0]
    bar = min(background, best) + keep * max(best - background, 0.0)
    # The slack keeps exact ties of float16 vectors together.
    count = sum(1 for s in scores[:k] if s >= bar - 1e-6)
    return max(count, 1)


def mixture_count(scores: Sequence[float], k: int) -> int:
    """How many of the best results belong together, by a mixture of two Gaussians over the best `POOL` scores: those of
    the component with the higher mean, at least `LEAST` (or all there are), at most `MOST`, and never more than `k`.

    The rule of ViDoRAG (Wang et al., arXiv 2502.18017), which fills up from the other component. The fit is
    expectation-maximisation from the least and the greatest score, so it is the same everywhere.

    `scores`: best first, from one ranking.
    """
    pool = [float(s) for s in scores[:POOL]]
    first = len(pool)
    if len(pool) > 2 and pool[0] > pool[-1]:
        upper = _upper(pool)
        first = next((at for at, belongs in enumerate(upper) if not belongs), len(pool))
    return min(max(first, min(LEAST, len(pool))), MOST, k)


def _upper(scores: Sequence[float]) -> list[bool]:
    """Which scores belong to the component with the higher mean. They are scaled to 0 … 1 first."""
    low, span = scores[-1], scores[0] - scores[-1]
    x = [(s - low) / span for s in scores]
    means, spreads, share = [0.0, 1.0], [0.25, 0.25], 0.5
    likely = [0.0] * len(x)
    for _ in range(_ROUNDS):
        before, likely = likely, [_posterior(v, means, spreads, share) for v in x]
        weight = sum(likely)
        if max(abs(a - b) for a, b in zip(before, likely)) < 1e-6 or not 0.0 < weight < len(x):
            break
        share = weight / len(x)
        for side, own in enumerate(([1 - p for p in likely], likely)):
            total = sum(own)
            means[side] = sum(p * v for p, v in zip(own, x)) / total
            spreads[side] = max(sqrt(sum(p * (v - means[side]) ** 2 for p, v in zip(own, x)) / total), _NARROWEST)
    return [p > 0.5 for p in likely]


def _posterior(value: float, means: Sequence[float], spreads: Sequence[float], share: float) -> float:
    """The probability that a value comes from the upper component."""
    lower, upper = (-0.5 * ((value - m) / s) ** 2 - log(s) for m, s in zip(means, spreads))
    return 1.0 / (1.0 + exp(min(lower - upper, 700.0)) * (1.0 - share) / share)


def chosen(by_text: Sequence[Scored], by_image: Sequence[Scored] | None, k: int, pool: int, cut: Cut) -> list[int]:
    """The entries to show of two rankings, best first: at most `k`, as many as the rule `cut` leaves.

    Args:
        by_image: None where no picture was searched with.
        pool: how many each ranking was asked for.
    """
    if cut == "mixture":
        kept = {s.entity for ranking in (by_text, by_image or ()) for s in _belonging(ranking, k)}
    else:
        kept = _kept(by_text, k, KEEP_TEXT if cut == "gap" else 0.0, 0.0)
        kept |= _kept(by_image or (), k, KEEP_IMAGE if cut == "gap" else 0.0, None)
    if by_image is None:
        ranked = by_text
    elif not by_text:
        ranked = by_image
    else:
        # Agreement counts between what the picture alone would show and what the words tell apart. Far down its
        # ranking a picture says nothing, and a wrong label would lift any entry there above the best one.
        ranked = fuse([(by_image[:k], IMAGE_WEIGHT), (_telling(by_text, pool), TEXT_WEIGHT)])
    return [s.entity for s in ranked if s.entity in kept][:k]


def related_first(parent: Mapping[int, int], titles: Mapping[int, str], text: str) -> list[int]:
    """Neighbours (each with the result that it is a neighbour of) in the order in which they are appended: those whose
    titles share most words with `text` first, else as they come."""
    of = {row: set(tokens(title)) for row, title in titles.items()}
    asked = {t for t in tokens(text) if t not in STOP_WORDS}
    # Words that the result itself has say nothing about which of its neighbours is meant.
    shared = {row: len((asked - of.get(origin, set())) & of.get(row, set())) for row, origin in parent.items()}
    return sorted(parent, key=lambda row: -shared[row])  # stable: otherwise in the order of the relations


def _telling(by_text: Sequence[Scored], pool: int) -> list[Scored]:
    """The entries that the words tell apart: a word that many share must not reorder what the picture ranked.

    "flag" alone says nothing among flags (as many as were looked for score alike); "flag of Chad" speaks for Chad and
    not for the other flags.
    """
    kept = _kept(by_text, len(by_text), KEEP_TEXT, 0.0)
    return [] if len(kept) >= pool else [s for s in by_text if s.entity in kept]


def _belonging(ranking: Sequence[Scored], k: int) -> Sequence[Scored]:
    return ranking[: mixture_count([s.score for s in ranking], k)]


def _kept(ranking: Sequence[Scored], k: int, keep: float, floor: float | None) -> set[int]:
    count = dynamic_count([s.score for s in ranking], k, keep=keep, floor=floor)
    return {s.entity for s in ranking[:count]}
