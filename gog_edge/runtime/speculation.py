"""Speculation: guess the next tokens from what was said already, verify them in one run, keep what is right.

Names, boxes, facts and the syntax of calls are copied: out of results into thoughts, out of thoughts into calls and
answers. When the end of the conversation occurred before, what followed it then is a good guess (`SuffixIndex`). The
guess is run together with the newest token and kept only as far as the policy itself would have written it. So the text
does not depend on it where a row's bits do not depend on the rows that run beside it: with native operators, by
construction and by test. With stock operators and TensorRT a run of several rows rounds otherwise than runs of one,
which can decide between two tokens that are almost equally likely; there nothing is guessed unless `RunOptions.exact`
is off (`Model.rows_independent`).

Whether a guess pays depends on the machine (what k rows cost beside one) and on the text (how often a match of a
certain length is right). Both are learnt while decoding and kept for later turns (`GuessMemory`); chances are learnt
from guesses that were not run, too. `SpeculationControl` keeps an account for each turn, so that none is much slower.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import UsageError

I32 = NDArray[np.int32]

LONGEST = 16  # matches are not told apart beyond
_CANDIDATES = 16  # earlier places that are compared
_CONTEXT = 3  # tokens before a turn that are remembered with it

_BUCKETS = (2, 3, 4, 6, 9, LONGEST)  # lengths of matches that begin a class
_CLASS = [sum(size >= bucket for bucket in _BUCKETS) for size in range(LONGEST + 1)]
_SIZES = [[size for size in range(LONGEST + 1) if _CLASS[size] == kind] for kind in range(len(_BUCKETS) + 1)]
_PRIOR = (0.3, 0.5, 0.6, 0.65, 0.7, 0.8, 0.85)  # chance of a class before anything is known
_PRIOR_WEIGHT, _KEEP = 4.0, 0.97  # guesses that the prior counts for; what a new guess leaves of the old ones

MOST_ROWS = 80  # of a run with guesses
_HOPE = 0.1  # of a run of one row: what another row is thought to cost before one was run
_STALE, _SURE = 512, 3  # steps, three times as many each time; runs
_TICK_S = 1e-6  # a coarse clock must not make a step look free
_SHORTEST_TURN = 10  # steps; a shorter turn may lose `max_loss` of so many
_TURN_CREDIT, _CREDIT = 20.0, 50.0  # steps; past successes do not allow endless bad guesses
_SAFE = 0.75  # of what may be lost: times are never measured exactly
_PAYS = 1.02  # tokens in a step's time, at least, against 1 without a guess


@dataclass(frozen=True)
class Speculation:
    """Settings. `max_draft`: most tokens guessed at once, 0 switches it off; `ngram_min`/`ngram_max`: length of the
    match that a guess needs, and from which on longer ones are not looked for; `max_loss`: share of a turn's decoding
    time that wrong guesses may cost; `remember`: tokens that the policy wrote in earlier conversations in which matches
    are looked for, too (0: in the same conversation only); `adaptive` false always guesses (for measuring)."""

    max_draft: int = 8
    ngram_min: int = 2
    ngram_max: int = LONGEST
    max_loss: float = 0.02
    remember: int = 4096
    adaptive: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.max_draft <= 64:
            raise UsageError(f"max_draft is {self.max_draft}: 0 to 64 tokens can be guessed at once")
        if not 1 <= self.ngram_min <= self.ngram_max <= LONGEST:
            raise UsageError(
                f"ngram_min {self.ngram_min}, ngram_max {self.ngram_max}: 1 <= min <= max <= {LONGEST} is needed"
            )
        if not 0 <= self.remember <= 1 << 20:
            raise UsageError(f"remember is {self.remember}: 0 to {1 << 20} tokens can be remembered")
        if not 0 <= self.max_loss <= 1:
            raise UsageError(f"max_loss is {self.max_loss}: a share from 0 to 1 is needed")


class SuffixIndex:
    """Where the end of a conversation occurred before: the longest match, of equally long ones the newest.

    Every place is entered under the one or two tokens before it, places of one key as a chain, as LZ77 coders do: a
    token costs one entry, and cutting the conversation costs nothing. Follows a token array that grows; if it is cut
    and continues otherwise, some guesses are missed, none is made up: what is found is compared with the tokens.
    """

    def __init__(self, least: int = 2, longest: int = LONGEST, never: frozenset[int] = frozenset()) -> None:
        """`least`, `longest`: lengths of a match. `never`: ids that a guess must not hold (image pads: they stand for
        pixels, not for text)."""
        self._least, self._longest, self._pairs, self._never = least, longest, least > 1, never
        self._last: dict[int, int] = {}
        self._before: list[int] = [-1]  # place -> the one before it under the same key, or -1
        self._entered = 1
        self.match = 0

    def draft(self, tokens: I32, most: int, end: I32 | None = None) -> list[int]:
        """Up to `most` tokens that followed, in `tokens` [n], the longest end of `end` [m] that occurs there (None: of
        `tokens` themselves, before it); `match` is its length, 0 where there is none."""
        n, self.match, never, before, places = len(tokens), 0, self._never, self._before, self._last
        if self._entered != n:  # enter the places before the end: what follows the end is being looked for
            start = min(self._entered, n)
            first, self._entered = max(start - 2, 0), n
            part = tokens[first:n].tolist()
            before.extend([-1] * (n - len(before)))
            for place in range(start, n):
                one = part[place - 1 - first]
                before[place] = -1
                if one in never or (self._pairs and place < 2):  # a picture is thousands of equal pads
                    continue
                key = part[place - 2 - first] << 32 | one if self._pairs else one
                previous = places.get(key, -1)
                if previous < place:  # else an entry of what was cut off
                    before[place] = previous
                places[key] = place
        ids: memoryview = memoryview(tokens)  # type: ignore[arg-type]
        tail: memoryview = ids if end is None else memoryview(end)  # type: ignore[arg-type]
        last, longest, least = len(tail) - 1, self._longest, self._least
        if last + 1 < least:
            return []
        if longest > last + 1:
            longest = last + 1
        place = places.get(tail[last - 1] << 32 | tail[last] if self._pairs else tail[last], -1)
        best, best_at, left = least - 1, 0, _CANDIDATES
        while place >= 0 and left and best < longest:
            left -= 1
            if place < n and ids[place] not in never:  # else it was cut off since, or nothing can follow
                size, most_here = 0, place if place < longest else longest
                while size < most_here and ids[place - 1 - size] == tail[last - size]:
                    size += 1
                if size > best:
                    best, best_at = size, place
            place = before[place]
        if not best_at:
            return []
        self.match = best
        guess: list[int] = tokens[best_at : best_at + most].tolist()
        for at, token in enumerate(guess):
            if token in never:
                return guess[:at]
        return guess


class Remembered:
    """The newest of what a policy wrote, over all its conversations: its calls are much alike.

    To look something up, hold `lock` and ask `index` about `tokens`.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.index = SuffixIndex()
        self.tokens: I32 = np.zeros(0, np.int32)
        self._room: I32 = self.tokens

    def add(self, before: Sequence[int], written: Sequence[int], most: int) -> None:
        """A turn was `written` behind `before`. `most`: how many tokens are kept at least; twice as many at most."""
        new = [*before[-_CONTEXT:], *written][-most:]
        if not written:
            return
        with self.lock:
            count = len(self.tokens)
            if count + len(new) > len(self._room):
                kept = self.tokens[max(count - most, 0) :]
                self._room, self.index, count = np.zeros(2 * most, np.int32), SuffixIndex(), len(kept)
                self._room[:count] = kept
            self._room[count : count + len(new)] = new
            self.tokens = self._room[: count + len(new)]


class Chances:
    """How often the next token is the one that followed a match, by the match's length. A guess's second token follows
    a match that is longer by one, and so on. `of[match]`: the chance behind a match of so many tokens."""

    def __init__(self) -> None:
        self._right = [p * _PRIOR_WEIGHT for p in _PRIOR]
        self._tried = [_PRIOR_WEIGHT] * len(_PRIOR)
        self.of = [_PRIOR[kind] for kind in _CLASS]

    def learn(self, match: int, guess: Sequence[int], written: Sequence[int]) -> None:
        """`guess` was made behind a match, run or not; `written` followed."""
        for size, (guessed, token) in enumerate(zip(guess, written), match):
            kind = _CLASS[size] if size < LONGEST else _CLASS[LONGEST]
            self._tried[kind] = self._tried[kind] * _KEEP + 1.0
            self._right[kind] = self._right[kind] * _KEEP + (guessed == token)
            for same in _SIZES[kind]:
                self.of[same] = self._right[kind] / self._tried[kind]
            if guessed != token:
                return


class RowCosts:
    """What a run of k rows takes, in runs of one row. `likely[k]`: measured, or between and beyond what was measured;
    `bound[k]`: measured, or the most that it can be, as another row takes no more than a run of its own.

    A size that was run once or twice, long ago, counts as never measured: its figure may have been a hiccup.
    `balance`: what guesses have gained (or lost, below zero) in the `steps` of all turns, and what they may lose,
    `_CREDIT` at most: sizes that were never run are tried out of it.
    """

    def __init__(self) -> None:
        self._known: dict[int, float] = {1: 1.0}
        self._samples: dict[int, int] = {}
        self._stale = _STALE  # step of the next
        self.steps, self.balance = 0, 0.0
        self.likely: list[float] = []
        self.bound: list[float] = []
        self.learn(1, 1.0)

    def learn(self, rows: int, cost: float) -> None:
        """A run of `rows` took `cost` runs of one row."""
        old = self._known.get(rows)
        self._samples[rows] = count = 1 if old is None else self._samples.get(rows, 0) + 1
        new = min(cost, self.bound[rows]) if old is None else old + max(1 / count, 0.02) * (min(cost, 2 * old) - old)
        self._known = {**self._known, rows: new}
        known = sorted(self._known.items())
        likely, bound = [0.0] * (MOST_ROWS + 1), [0.0] * (MOST_ROWS + 1)
        for (low, low_cost), (high, dearer) in pairwise(known):
            for size in range(low, high):
                likely[size] = low_cost + (size - low) / (high - low) * (dearer - low_cost)
                bound[size] = low_cost if size == low else min(low_cost + size - low, max(low_cost, dearer))
        low, low_cost = known[-1]
        slope = max((low_cost - 1) / (low - 1), 0.0) if low > 1 else _HOPE
        for size in range(low, MOST_ROWS + 1):
            likely[size], bound[size] = low_cost + slope * (size - low), low_cost + (size - low)
        self.likely, self.bound = likely, bound

    def settle(self) -> None:
        """A turn begins."""
        self.balance = min(self.balance, _CREDIT)
        if self.steps >= self._stale:
            self._stale = 3 * self.steps
            sure = {rows for rows, count in self._samples.items() if count >= _SURE}
            self._known = {rows: cost for rows, cost in self._known.items() if rows == 1 or rows in sure}
            self.learn(1, 1.0)


class GuessMemory:
    """What decoding teaches about guesses; kept by the model, for the turns of all its conversations. Threads may learn
    at the same time: every value is replaced whole, and a lost update is one sample fewer."""

    def __init__(self) -> None:
        self.chances, self.costs, self.written = Chances(), RowCosts(), Remembered()


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
    """The account of one turn after the other; times in runs of one row (steps).

    A turn of n tokens would take n steps without guesses. A guess is run only if what it loses, should it be wrong from
    its first token on, leaves the turn at most `max_loss` slower than that. Where a run of so many rows was never
    measured, the loss is bounded by a step a row and may exceed what the turn allows, but not what all turns of the
    model do together: each size is tried once.
    """

    options: Speculation
    memory: GuessMemory = field(default_factory=GuessMemory)
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    single_s: float | None = None  # seconds of a decoding step of one token, smoothed; None before the first
    beside_s: float | None = None  # seconds of a step in which other conversations had part; None where none had
    _singles: int = 0
    _tokens: float = 0.0  # steps that the turn would have taken without guesses
    _gained: float = 0.0

    def begin(self) -> None:
        """A turn begins."""
        self._tokens = self._gained = 0.0
        self.memory.costs.settle()

    def length(self, available: int, match: int, base: int = 1) -> int:
        """How many of `available` guessed tokens to run behind `base` others; 0: none."""
        most = min(available, self.options.max_draft, MOST_ROWS - base)
        if most <= 0 or not self.options.adaptive:
            return max(most, 0)
        if self.single_s is None:  # the first step of a session measures what one token costs
            return 0
        costs, chances = self.memory.costs, self.memory.chances.of
        likely, bound, longest = costs.likely, costs.bound, len(chances) - 1
        without, max_loss = likely[base], self.options.max_loss
        short = self._tokens < _SHORTEST_TURN
        allowed = _SAFE * max_loss * (_SHORTEST_TURN if short else self._tokens) + self._gained
        best, best_rate, expected, chance, tried = 0, _PAYS, without, 1.0, False
        for count in range(1, most + 1):
            rows = base + count
            lost = bound[rows] - without
            if lost > allowed:
                if short or tried or likely[rows] == bound[rows] or lost > costs.balance:
                    break
                tried = True  # no more than one row further than what is known
            chance *= chances[match] if match < longest else chances[longest]
            match += 1
            expected += chance
            rate = expected / likely[rows]
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def ran_beside(self, drafted: int, accepted: int, seconds: float) -> None:
        """As `ran`, for a run in which other conversations had part: its time says nothing about guesses."""
        stats, beside = self.stats, self.beside_s
        stats.steps += 1
        stats.runs += drafted > 0
        stats.drafted += drafted
        stats.accepted += accepted
        self._tokens += 1
        self.beside_s = seconds if beside is None else beside + 0.1 * (min(seconds, 4 * beside) - beside)

    def ran(self, drafted: int, accepted: int, seconds: float, base: int = 1) -> None:
        """A decoding step ended: `base` tokens and `drafted` guesses were run, `accepted` guesses were right."""
        stats, costs, rows = self.stats, self.memory.costs, base + drafted
        self.beside_s = None
        stats.steps += 1
        costs.steps += 1
        seconds = seconds if seconds > _TICK_S else _TICK_S
        if rows == 1:
            single = self.single_s
            self._singles += 1
            if single is None:
                self.single_s = seconds
            else:
                self.single_s = single + max(1 / self._singles, 0.1) * (min(seconds, 4 * single) - single)
            self._tokens += 1
            costs.balance += self.options.max_loss
            return
        if not drafted and self.single_s is None:
            return
        stats.runs += drafted > 0
        stats.drafted += drafted
        stats.accepted += accepted
        if rows > MOST_ROWS:
            return
        single = self.single_s or seconds / rows
        cost = min(seconds / single, 2 * costs.bound[rows])
        costs.learn(rows, cost)
        without = costs.likely[base] + accepted
        gained = without - max(costs.likely[rows], min(cost, costs.bound[rows])) if drafted else 0.0
        self._tokens += without
        self._gained = min(self._gained + gained, _TURN_CREDIT)
        costs.balance += gained + self.options.max_loss * without
