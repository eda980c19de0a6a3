"""Prompt-lookup speculation: guess the next tokens from what the conversation already says, verify them at once.

Results are copied into answers, and boxes and tool calls repeat: when the last few tokens occurred before, what
followed them is a good guess. The guess is run together with the newest token and kept only as far as the policy
itself would have written it. So the text does not depend on it where a row's bits do not depend on the rows that run
beside it: with native operators, by construction and by test. With stock operators and TensorRT a run of several rows
rounds otherwise than runs of one, which can decide between two tokens that are almost equally likely; there nothing
is guessed unless `RunOptions.exact` is off (`Model.rows_independent`).

Whether a guess pays off depends on the machine (what k rows cost beside one) and on the text (how often a guess is
right). Both are measured while decoding, and a loss account keeps the total cost of wrong guesses below `max_loss`
of the decoding time, whatever happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import UsageError


@dataclass(frozen=True)
class Speculation:
    """Settings. `max_draft`: most tokens guessed at once, 0 switches it off; `ngram_min`/`ngram_max`: length of the
    match that a guess needs; `max_loss`: share of the decoding time that wrong guesses may cost;
    `adaptive` false always guesses (for measuring)."""

    max_draft: int = 8
    ngram_min: int = 2
    ngram_max: int = 4
    max_loss: float = 0.02
    adaptive: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.max_draft <= 64:
            raise UsageError(f"max_draft is {self.max_draft}: 0 to 64 tokens can be guessed at once")
        if not 1 <= self.ngram_min <= self.ngram_max <= 16:
            raise UsageError(f"ngram_min {self.ngram_min}, ngram_max {self.ngram_max}: 1 <= min <= max <= 16 is needed")


class PromptLookup:
    """Where n-grams of the conversation ended last. Follows a token array that grows; if it is cut and continues
    otherwise, some guesses are missed, none is made up: every entry is compared with the tokens."""

    def __init__(self, options: Speculation, never: frozenset[int] = frozenset()) -> None:
        """`never`: ids that a guess must not hold (image pads: they stand for pixels, not for text)."""
        self._options = options
        self._never = never
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self.match = 0

    def draft(self, tokens: NDArray[np.int32], most: int) -> list[int]:
        """Up to `most` tokens that followed the last n-gram of `tokens` before; `match` is the n that was found."""
        self._index(tokens)
        n = len(tokens)
        self.match = 0
        for size in range(min(self._options.ngram_max, n - 1), self._options.ngram_min - 1, -1):
            gram = tuple(tokens[n - size :].tolist())
            end = self._ends.get(gram)
            if end is None or end >= n or tuple(tokens[end - size : end].tolist()) != gram:
                continue  # entries of a part that was cut off since are found stale here
            guess: list[int] = []
            for token in tokens[end : end + most].tolist():
                if token in self._never:
                    break
                guess.append(token)
            if guess:
                self.match = size
                return guess
        return []

    def _index(self, tokens: NDArray[np.int32]) -> None:
        """Enter the n-grams that end before the last token (the last one is what is being looked up)."""
        n = len(tokens)
        start = min(self._indexed, n)
        if n - 1 <= start:
            return
        low = max(start - self._options.ngram_max, 0)
        part = tokens[low : n - 1].tolist()
        for end in range(max(start, 1), n):
            for size in range(self._options.ngram_min, self._options.ngram_max + 1):
                if size <= end:
                    self._ends[tuple(part[end - size - low : end - low])] = end
        self._indexed = n - 1


_TICK_S = 1e-6  # a coarse clock must not make a step look free


@dataclass
class SpeculationStats:
    """Counts of one session. `drafted` tokens were guessed in `runs` runs, `accepted` of them were right."""

    runs: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0

    @property
    def accept_rate(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass
class SpeculationControl:
    """Decides how many tokens to guess, from what runs of k rows took and how often guesses were right."""

    options: Speculation
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    _row_s: dict[int, float] = field(default_factory=dict)  # rows of a run -> seconds (smoothed)
    _right: dict[int, float] = field(default_factory=dict)  # length of the match -> chance of one guessed token
    _loss_s: float = 0.0
    _total_s: float = 0.0

    @property
    def single_s(self) -> float | None:
        """Seconds of a decoding step of one token, smoothed; None before the first."""
        return self._row_s.get(1)

    def length(self, available: int, match: int) -> int:
        """How many of `available` guessed tokens to verify; 0: none."""
        most = min(available, self.options.max_draft)
        if most <= 0 or not self.options.adaptive:
            return max(most, 0)
        single = self._row_s.get(1)
        if single is None:  # the first steps measure what one token costs
            return 0
        chance = min(self._right.get(match, 0.5), 0.99)
        allowance = self.options.max_loss * self._total_s + single / 2 - self._loss_s
        best, best_rate = 0, 1.0 / single
        for count in range(1, most + 1):
            cost = self._cost(count + 1, single)
            if cost - single > allowance:  # what is lost if every guess is wrong
                break
            rate = (1 - chance ** (count + 1)) / (1 - chance) / cost
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def ran(self, drafted: int, accepted: int, match: int, seconds: float) -> None:
        """A decoding step ended: `accepted` of `drafted` guesses were right."""
        rows = drafted + 1
        seconds = max(seconds, _TICK_S)
        known = self._row_s.get(rows)
        self._row_s[rows] = seconds if known is None else known + 0.2 * (min(seconds, 4 * known) - known)
        self._total_s += seconds
        self.stats.steps += 1
        if not drafted:
            return
        self.stats.runs += 1
        self.stats.drafted += drafted
        self.stats.accepted += accepted
        single = self._row_s.get(1, seconds / rows)
        gained = (accepted + 1) * single - seconds
        self._loss_s = max(self._loss_s - gained, -20 * single)  # past successes do not allow endless bad guesses
        tries = min(accepted + 1, drafted)
        for i in range(tries):
            old = self._right.get(match, 0.5)
            self._right[match] = old + 0.1 * ((1.0 if i < accepted else 0.0) - old)

    def _cost(self, rows: int, single: float) -> float:
        """Seconds of a run of `rows`: measured, else from the nearest measured size, else a hopeful guess."""
        known = self._row_s.get(rows)
        if known is not None:
            return known
        near = [(abs(r - rows), r) for r in self._row_s if r > 1]
        if near:
            size = min(near)[1]
            slope = max(self._row_s[size] - single, 0.0) / (size - 1)
            return single + slope * (rows - 1)
        return single * (1 + 0.03 * (rows - 1))
