"""Going back in a conversation whose policy has recurrent layers.

Rows of keys and values can be forgotten from the end; a recurrent state can't: it is what it is after so many tokens
(native operators take the last few back). So copies of it are kept, at places that a conversation comes back to (where
a prompt or an image ends, where someone put a mark) and every `EVERY` tokens between. Going back further restores the
newest copy that is not too new, and the tokens after it are run again: dearer than forgetting rows, and never wrong. A
policy that attends in every layer has no state, and nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.engines.base import F32, ForgetsRows, KvCache, RecurrentState
from gog_edge.errors import EngineError

EVERY = 512  # tokens between copies where nothing else asks for one
MEMORY = 256 << 20  # bytes of a session's copies
FEWEST, MOST = 3, 16


def copies(state_bytes: int) -> int:
    """How many copies of a state of so many bytes a session keeps."""
    return min(max(MEMORY // state_bytes, FEWEST), MOST) if state_bytes else 0


@dataclass(frozen=True)
class _Copy:
    """The state after some tokens, and the logits [V] of the last of them where they are known."""

    arrays: list[NDArray[Any]]
    logits: F32 | None


class Snapshots:
    """Copies of one session's state, by the number of tokens. Not thread-safe: its session's lock covers it."""

    def __init__(self, recurrent: bool) -> None:
        """`recurrent`: whether there is a state at all; asked before a call where steps have to be short."""
        self.recurrent = recurrent
        self._kept: dict[int, _Copy] = {}
        self._wanted: set[int] = set()

    def want(self, *places: int) -> None:
        """Somebody will come back there."""
        if self.recurrent:
            self._wanted.update(places)

    def run_end(self, at: int, stop: int, last: int) -> int:
        """Where a run from `at` to `stop` ends, so that a copy can be made at the next wanted place; none is made
        inside the rows from `last` on, which stay together."""
        return min((place for place in self._wanted if at < place < stop and place <= last), default=stop)

    def ran(self, cache: KvCache, at: int, logits: F32 | None, prompt: bool) -> None:
        """A run has ended at token `at`, with the logits [V] of the last token if they were asked for. `prompt`: here
        ends what was given to the policy."""
        if not self.recurrent:
            return
        newest = max(self._kept, default=0)
        if prompt or at in self._wanted or at - newest >= EVERY:
            self._keep(cache, at, logits)

    def place(self, cache: KvCache | None, upto: int) -> int:
        """From which token on a run must begin that goes on at `upto`: there, or where the newest copy is."""
        if not self.recurrent or cache is None or _reaches(cache, upto):
            return upto
        return max((at for at in self._kept if at <= upto), default=0)

    def begin(self, cache: KvCache | None, upto: int) -> int:
        """Make the state that after the tokens which `place` gives, and say how many they are."""
        at = self.place(cache, upto)
        if self.recurrent and cache is not None and at and not _reaches(cache, at):
            _state(cache).set_state(at, self._kept[at].arrays)  # an engine begins with zeros at 0 by itself
        return at

    def rows(self, at: int) -> F32 | None:
        """The logits [1, V] of the token before `at`, where the copy there has them."""
        kept = self._kept.get(at)
        return None if kept is None or kept.logits is None else kept.logits[None]

    def cut(self, length: int) -> None:
        """The conversation ends at `length` now."""
        self._kept = {at: kept for at, kept in self._kept.items() if at <= length}
        self._wanted = {place for place in self._wanted if place <= length}

    def _keep(self, cache: KvCache, at: int, logits: F32 | None) -> None:
        arrays = _state(cache).state()
        self._kept[at] = _Copy(arrays, None if logits is None else np.array(logits))
        self._kept = dict(sorted(self._kept.items()))
        if len(self._kept) > copies(sum(array.nbytes for array in arrays)):
            steps = {here: here - before for before, here in pairwise((0, *self._kept))}
            del steps[max(steps)]  # the newest stays
            del self._kept[min(steps, key=lambda place: steps[place])]


def pack(cache: KvCache, tokens: int, recurrent: bool) -> list[NDArray[Any]]:
    """All that a cache holds of the first `tokens`, for `unpack`: rows, then the state (which must be after them)."""
    rows = cache.read(0, tokens)
    return [*rows, *_state(cache).state()] if recurrent else rows


def unpack(cache: KvCache, tokens: int, arrays: list[NDArray[Any]], states: int) -> None:
    """Fill a new cache; the last `states` arrays are the state.

    Raises:
        EngineError: the arrays are those of another policy.
    """
    rows = arrays[: len(arrays) - states]
    if len(arrays) < states or any(array.ndim < 2 or array.shape[1] != tokens for array in rows):
        raise EngineError(f"what was kept is not the KV cache of {tokens} tokens")
    cache.write(0, rows)
    if states:
        _state(cache).set_state(tokens, arrays[-states:])


def set_state(cache: KvCache, seen: int, arrays: list[NDArray[Any]]) -> None:
    """Make the state that after `seen` tokens, whose rows are there."""
    _state(cache).set_state(seen, arrays)


def forget(cache: KvCache | None, keep: int) -> None:
    """Give back the memory of all rows but the first `keep`, where the cache can."""
    rows: object = cache
    if isinstance(rows, ForgetsRows):
        rows.forget(keep)


def _reaches(cache: KvCache, at: int) -> bool:
    state = _state(cache)
    return state.floor <= at <= state.seen


def _state(cache: KvCache) -> RecurrentState:
    if not isinstance(cache, RecurrentState):
        raise EngineError(f"a {type(cache).__name__} keeps no recurrent state: this engine can't run such a policy")
    return cache
