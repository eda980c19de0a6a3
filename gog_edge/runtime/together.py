"""Questions that run at the same time share the decoder's weights: one run computes the next tokens of all of them.

Decoding is bound by reading weights, so eight tokens of eight conversations cost little more than one. Nobody above
knows: a session calls `run` as ever and waits; whoever finds the engine free leads, and computes with its own rows what
others have asked for meanwhile. Conversations join and leave between two runs, simply by asking or not asking. Tokens
that are given (a newcomer's prompt) are cut into pieces, so that the others write on between them, and one
conversation's piece runs with the newest tokens of all others. No bit depends on it (`RunsTogether`).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass, field, replace

from gog_edge.deadline import SYSTEM, Budget
from gog_edge.engines.base import F32, DecoderInputs, DecoderRun, KvCache, RunsTogether
from gog_edge.errors import CancelledError

PIECE = 64  # tokens of a prompt that are read between two steps of the others
_MOST_ROWS = 32  # of the others, guesses included
_SHARE, _LEAST_S, _MOST_S = 0.3, 0.002, 0.1  # of a run: for how long those who took part in it are waited for
_GONE_S = 1.0  # who has not come back by then is not coming


@dataclass(eq=False)
class _Request:
    """What one conversation waits for. `at`: rows of it that are computed."""

    inputs: DecoderInputs
    cache: KvCache
    past: int
    budget: Budget
    at: int = 0
    done: bool = False
    left: bool = False  # nobody waits for it any more
    logits: F32 | None = None
    error: BaseException | None = None
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def rows(self) -> int:
        return len(self.inputs.embeds) - self.at

    @property
    def reads(self) -> bool:
        """Whether it has to be alone among those of its kind in a run."""
        return self.inputs.read[1] > self.at or self.rows > PIECE

    def piece(self, most: int) -> DecoderRun:
        """The next `most` rows, or a few more or less, so that the last ones stay together."""
        inputs, at, count = self.inputs, self.at, self.rows
        if at == 0 and count <= most:
            return DecoderRun(inputs, self.cache, self.past)
        stop = at + (count if count <= most else max(min(most, count - inputs.last_k), 1))
        last = stop == at + count
        rows = slice(at, stop)
        begin, end = (min(max(edge, at), stop) - at for edge in inputs.read)
        part = DecoderInputs(
            inputs.embeds[rows],
            inputs.rope_cos[rows],
            inputs.rope_sin[rows],
            None if inputs.deepstack is None else inputs.deepstack[:, rows],
            inputs.last_k if last else 0,
            (),
            None if inputs.ids is None else inputs.ids[rows],
            None if inputs.positions is None else inputs.positions[:, rows],
            (begin, end),
        )
        return DecoderRun(part, self.cache, self.past + at)


@dataclass
class Seen:
    """The last run of a conversation, and whether it came soon after the one before."""

    began: float = 0.0
    ended: float = 0.0
    prompt: bool = True

    @property
    def until(self) -> float:
        """For so long the next one is waited for."""
        return self.ended + min(max(_SHARE * (self.ended - self.began), _LEAST_S), _MOST_S)


class RunQueue:
    """Runs that are asked for while another one runs. `SharedRuns` (in `decoder.py`) is its front."""

    def __init__(self, runner: RunsTogether) -> None:
        self.sharing = 1  # conversations of the last run
        self._runner = runner
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._queue: list[_Request] = []
        self._busy = False  # somebody runs something, or is about to
        self._leader: _Request | None = None
        self._seen: dict[int, Seen] = {}  # by the cache's id
        self._only = 0  # the id of the only one that was seen
        self._ended: deque[int] = deque()  # ids of caches that are no more

    def _with_others(self, inputs: DecoderInputs, cache: KvCache, past: int, budget: Budget) -> F32:
        """Wait for a run with these rows, or lead one."""
        mine = _Request(inputs, cache, past, budget)
        with self._lock:
            self._only = 0
            seen = self._seen.get(id(cache))
            if seen is not None:
                seen.prompt = SYSTEM.now() <= seen.until
            self._queue.append(mine)
            if not self._busy:
                self._hand_over()
            elif not self._awaited():
                self._arrived.notify()
        try:
            with mine.budget.on_stop(mine.woken.set):
                while not mine.done:
                    mine.woken.wait()
                    mine.woken.clear()
                    with self._lock:
                        leads = self._leader is mine
                        if not leads and mine in self._queue and _over(mine.budget):
                            self._queue.remove(mine)  # nobody computes anything of it now
                            mine.done = True
                    if leads:
                        self._lead(mine)
        except BaseException:  # Ctrl-C: the others go on
            with self._lock:
                mine.left = True
                if mine in self._queue:
                    self._queue.remove(mine)
                if self._leader is mine:
                    self._hand_over()
            raise
        if mine.error is not None:
            raise mine.error
        if mine.logits is None:
            mine.budget.check()
            raise CancelledError("the question was cancelled by the caller")
        return mine.logits

    def _first_seen(self, cache: KvCache) -> Seen:
        """From now on others wait for it, until its cache is no more; with the lock held."""
        seen = self._seen[id(cache)] = Seen()
        # Called wherever Python lets go of the cache, also in a thread that holds the lock: it only notes the id.
        weakref.finalize(cache, self._ended.append, id(cache)).atexit = False
        return seen

    def _forget_ended(self) -> None:
        """With the lock held."""
        while self._ended:
            key = self._ended.popleft()
            self._seen.pop(key, None)
            if key == self._only:
                self._only = 0

    def _hand_over(self) -> None:
        """Let the request that waits longest lead; with the lock held."""
        self._leader = self._queue[0] if self._queue else None
        self._busy = self._leader is not None
        if self._leader is not None:
            self._leader.woken.set()
        elif len(self._seen) == 1:
            (self._only,) = self._seen

    def _awaited(self) -> float:
        """Until when those are waited for that took part in the last runs and are likely to be back soon; 0: nobody
        is. With the lock held."""
        here = {id(request.cache) for request in self._queue}
        return max((s.until for key, s in self._seen.items() if s.prompt and key not in here), default=0.0)

    def _lead(self, mine: _Request) -> None:
        """Run what is asked for until `mine` is done."""
        while not mine.done:
            taken: list[_Request] = []
            try:
                with self._lock:
                    if _over(mine.budget):
                        self._queue.remove(mine)
                        mine.done = True
                        break
                    while (left := self._awaited() - SYSTEM.now()) > 0:
                        self._arrived.wait(left)
                    taken, whole = self._take()
                self._step(taken, whole)
            finally:
                with self._lock:
                    self._queue[:0] = [request for request in taken if not request.done]
                    for request in taken:
                        if request.done:
                            request.woken.set()
        with self._lock:
            self._hand_over()

    def _take(self) -> tuple[list[_Request], bool]:
        """Who takes part in the next run, and whether a newcomer reads all at once; with the lock held."""
        self._forget_ended()
        now = SYSTEM.now()
        here = {id(request.cache) for request in self._queue}
        for key in [key for key, s in self._seen.items() if key not in here and now > s.until + _GONE_S]:
            del self._seen[key]
        reader = next((request for request in self._queue if request.reads), None)
        taken, rows = [] if reader is None else [reader], 0
        for request in self._queue:
            if len(taken) == self._runner.most_together:
                break
            if not request.reads and (rows == 0 or rows + request.rows <= _MOST_ROWS):
                taken.append(request)
                rows += request.rows
        for request in taken:
            self._queue.remove(request)
        return taken, rows == 0 and self._seen.keys() <= here

    def _step(self, taken: list[_Request], whole: bool) -> None:
        """One run; those whose rows it was are further or done."""
        began = SYSTEM.now()
        pieces = [request.piece(request.rows if whole else PIECE) for request in taken]
        results: list[F32 | None]
        if len(taken) > 1:
            try:
                results = self._runner.run_together(pieces)
            except Exception:  # noqa: BLE001 - whoever is at fault fails alone
                results = [self._alone(request, piece) for request, piece in zip(taken, pieces)]
        else:
            results = [self._alone(request, piece) for request, piece in zip(taken, pieces)]
        ended = SYSTEM.now()
        with self._lock:
            self.sharing = len(taken)
            for request, piece, logits in zip(taken, pieces, results):
                request.at += len(piece.inputs.embeds)
                request.logits = logits if request.rows == 0 else None
                over = request.left or request.rows == 0 or _over(request.budget)
                request.done = over or request.error is not None
                last = self._seen.get(id(request.cache)) or self._first_seen(request.cache)
                last.began, last.ended = began, ended

    def _alone(self, request: _Request, piece: DecoderRun) -> F32 | None:
        """The piece by itself; what goes wrong is the request's own error."""
        inputs = piece.inputs if piece.inputs.last_k else replace(piece.inputs, last_k=1)
        try:
            return self._runner.run(inputs, piece.cache, piece.past, request.budget)
        except Exception as e:  # noqa: BLE001 - raised where it was asked for
            request.error = e
            return None


def _over(budget: Budget) -> bool:
    return budget.cancelled or budget.remaining() <= 0
