"""Ranking rules: reciprocal rank fusion, the dynamic number of results, deterministic order.

All are stated in docs/search.md; none depends on the clock, on hashes or on the order of insertion beyond the
entity's own number, so the same index and query give the same list on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
# SIGIR 2009: score(d) = sum over rankings of 1 / (k + rank(d)), k = 60.
RRF_K = 60.0


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
