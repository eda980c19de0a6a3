"""Writing one turn: choose a token, append it, run; with stop strings, grammar, guesses, limits and a deadline.

The turn's tokens stay in the session, the end-of-turn token does not (whoever continues the conversation writes it).
What interrupts a turn (deadline, cancellation) leaves the session consistent: everything yielded is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.session import Session
from gog_edge.runtime.speculation import Speculation, SpeculationControl, SpeculationStats, SuffixIndex
from gog_edge.runtime.telemetry import TokenRecord
from gog_edge.runtime.tokenizer import Detokenizer

F32 = NDArray[np.float32]

_MOST_FORCED = 16  # tokens that wait to be computed, for a guess to be run behind them


class Constraint(Protocol):
    """What a grammar does to a turn. One object per turn."""

    def apply(self, logits: F32) -> None:
        """Set the logits [V] of tokens that may not follow to -inf, in place."""
        ...

    def accept(self, token: int) -> None:
        """`token` was written. Raises GrammarError if it may not follow."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must follow now, accepted already; empty where there is a choice."""
        ...

    def fits(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, from the first on, may follow now; nothing is accepted."""
        ...

    @property
    def finished(self) -> bool:
        """Nothing may follow any more."""
        ...


class TurnEnd(str, Enum):
    """Why a turn ended."""

    EOS = "eos"
    STOP = "stop"  # a stop string
    GRAMMAR = "grammar"  # complete by the grammar
    TOKENS = "tokens"  # the token limit
    CONTEXT = "context"  # no room is left


@dataclass
class TurnResult:
    """A turn in the making; complete when `end` is set."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    end: TurnEnd | None = None
    stop: str = ""


@dataclass(frozen=True)
class TurnOptions:
    """Limits of one turn. `stop`: strings that end it (kept in the text); `eos`: ids that end it (not kept)."""

    max_tokens: int
    eos: tuple[int, ...]
    stop: tuple[str, ...] = ()
    budget: Budget = UNLIMITED


class TurnWriter:
    """Writes the turns of one session: sampler state and the guesses' memory live here. Not thread-safe."""

    def __init__(self, session: Session, sampler: Sampler, speculation: Speculation | None = None) -> None:
        self._session = session
        self._sampler = sampler
        tokens = session.model.manifest.tokens
        never = frozenset({tokens.image_pad, tokens.vision_start, tokens.vision_end, *tokens.eos})
        options = speculation or Speculation()
        model = session.model  # a wrong guess can be taken back from a recurrent state by native operators only
        guess = options.max_draft and (not model.state_arrays or model.rows_independent)
        self._suffixes = SuffixIndex(options.ngram_min, options.ngram_max, never) if guess else None
        self._never = never
        self._guess: list[int] = []  # the newest, whether it was run or not, and the length of the match behind it
        self._match = 0
        self._control = SpeculationControl(options, model.guesses)
        self.measures = False  # whether `scores` are kept, a pass over the logits for each token
        self.scores: list[float] = []  # log-probabilities of the newest turn's tokens, those that were chosen

    @property
    def speculation(self) -> SpeculationStats:
        """Counts of guesses so far."""
        return self._control.stats

    @property
    def seconds_per_token(self) -> float | None:
        """What one decoding step takes here, smoothed; None before the first."""
        beside = self._control.beside_s
        return self._control.single_s if beside is None else beside

    def close(self) -> None:
        """Let go of a turn that nobody reads to its end; here there is nothing to let go of."""

    def turn(
        self, options: TurnOptions, constraint: Constraint | None = None, result: TurnResult | None = None
    ) -> Iterator[TokenRecord]:
        """Write a turn, token by token; `result` (the caller's) is complete at the end.

        Raises:
            CancelledError, DeadlineReached: the budget ended; `result` holds what was written.
            EngineError: the engine failed.
            GrammarError: the grammar and the tokens disagree.
        """
        session, sampler, budget = self._session, self._sampler, options.budget
        result = result if result is not None else TurnResult()
        if not result.ids:
            self.scores = []
        text, before, written = _TurnText(session, result, options), len(session), len(result.ids)
        sampler.restart(session.tokens.tolist() if not sampler.plain else ())
        self._control.begin()
        try:
            if constraint is not None and (forced := self._force(constraint, text)[0]):
                yield forced
            while result.end is None:
                budget.check()
                begun, pending = len(result.ids), session.sequence.length - session.computed
                base = pending if pending <= 1 else self._forced_rows(pending)
                draft = self._draft(options.max_tokens - begun, base, constraint) if base else []
                start = budget.clock.now()
                logits = session.run(draft, budget)
                seconds = budget.clock.now() - start
                row = 0
                while True:  # a token a row, for as long as the guess agrees
                    token = self._choose(logits[row], constraint)
                    if self.measures:
                        self.scores.append(_log_probability(logits[row], token))
                    if token in options.eos:
                        result.end = TurnEnd.EOS
                        break
                    guessed = row < len(draft) and token == draft[row]
                    if not guessed and session.room <= 0:
                        result.end = TurnEnd.CONTEXT
                        break
                    if constraint is not None:
                        constraint.accept(token)
                    if not sampler.plain:
                        sampler.saw((token,))
                    if guessed:
                        session.accept(1)
                        row += 1
                    else:
                        session.extend((token,))
                    yield text.write((token,), guessed=guessed)
                    if result.end is not None or not guessed:
                        break
                    if constraint is not None:  # what it forces now may not be what the policy would have chosen
                        forced, right = self._force(constraint, text, draft[row:])
                        row += right
                        if forced:
                            yield forced
                        if result.end is not None or session.computed != len(session):
                            break
                if base:
                    shared = session.model.decoder.shared
                    if shared is None or shared.sharing == 1:
                        self._control.ran(len(draft), row, seconds, base)
                    else:
                        self._control.ran_beside(len(draft), row, seconds)
                    if self._guess:
                        session.model.guesses.chances.learn(self._match, self._guess, result.ids[begun:])
                if constraint is not None and (forced := self._force(constraint, text)[0]):
                    yield forced
            if tail := text.flush():
                yield tail
        finally:
            remember = self._control.options.remember
            if self._suffixes is not None and remember:
                said = [i for i in session.tokens[max(before - 4, 0) : before].tolist() if i not in self._never]
                session.model.guesses.written.add(said, result.ids[written:], remember)

    def _forced_rows(self, pending: int) -> int:
        """`pending` tokens that wait to be computed if guesses may be run behind them, else 0: they are too many, or
        not the policy's own."""
        session = self._session
        return pending if pending <= _MOST_FORCED and bool(session.sequence.written[session.computed :].all()) else 0

    def _draft(self, left: int, base: int, constraint: Constraint | None) -> list[int]:
        """What to try behind `base` tokens: the part that pays of a guess, which is kept to learn from."""
        self._guess = []
        options = self._control.options
        session = self._session
        ids, earlier = session.sequence.ids, session.model.guesses.written
        most, shared = options.max_draft, session.model.decoder.shared
        if shared is not None:  # others fill the run already, and a wrong guess costs them, too
            most //= shared.sharing
        most = min(most, left - 1, session.model.max_context - len(ids) - 1)
        if self._suffixes is None or most <= 0:
            return []
        guess, match = self._suffixes.draft(ids, most), self._suffixes.match
        if options.remember and match < options.ngram_max:
            with earlier.lock:
                other, longer = earlier.index.draft(earlier.tokens, most, ids), earlier.index.match
            if longer > match and longer >= options.ngram_min:
                guess, match = other, longer
        if constraint is not None and guess:
            guess = guess[: constraint.fits(guess)]
        self._guess, self._match = guess, match
        return guess[: self._control.length(len(guess), match, base)] if guess else guess

    def _choose(self, logits: F32, constraint: Constraint | None) -> int:
        if constraint is not None:
            logits = logits.copy()
            with self._session.trace.span("grammar"):
                constraint.apply(logits)
        if self._sampler.plain:
            best = int(logits.argmax())
            if isfinite(logits[best]):
                return best
        return self._sampler.choose(logits)  # which also says what is wrong with them

    def _force(
        self, constraint: Constraint, text: _TurnText, draft: Sequence[int] = ()
    ) -> tuple[TokenRecord | None, int]:
        """Append what the grammar leaves no choice about, in one piece; and how many tokens of `draft`, which the last
        run tried next, it confirms."""
        result, session = text.result, self._session
        if result.end is not None:
            return None, 0
        ids = constraint.forced()
        room = min(session.room - 1, text.options.max_tokens - len(result.ids))
        if len(ids) > room:
            result.end = TurnEnd.CONTEXT if room == session.room - 1 else TurnEnd.TOKENS
            return None, 0
        written, right = None, 0
        if ids:
            while right < min(len(ids), len(draft)) and ids[right] == draft[right]:
                right += 1
            if right:
                session.accept(right, forced=True)
            if right < len(ids):
                session.extend(ids[right:], forced=True)
            self._sampler.saw(ids)
            written = text.write(tuple(ids), forced=True)
        if constraint.finished and result.end is None:
            result.end = TurnEnd.GRAMMAR
        return written, right


def _log_probability(logits: F32, token: int) -> float:
    """Of `token` under the softmax of `logits` [V], as the policy gave them: before temperature and grammar."""
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted, dtype=np.float64).sum()))


class _TurnText:
    """The turn's text as it grows: detokenised, cut at a stop string, counted."""

    def __init__(self, session: Session, result: TurnResult, options: TurnOptions) -> None:
        self.result, self.options = result, options
        self._trace = session.trace
        self._detokenizer = Detokenizer(session.model.tokenizer)
        self._longest = max((len(s) for s in options.stop), default=0)

    def write(self, ids: tuple[int, ...], *, forced: bool = False, guessed: bool = False) -> TokenRecord:
        """Count tokens and give the text that they complete."""
        result = self.result
        result.ids.extend(ids)
        text = "".join(map(self._detokenizer.push, ids))
        if text and self._longest:
            text = self._cut(text)
        result.text += text
        if result.end is None and len(result.ids) >= self.options.max_tokens:
            result.end = TurnEnd.TOKENS
        return self._trace.token(text, ids, forced=forced, guessed=guessed)

    def flush(self) -> TokenRecord | None:
        """An incomplete character."""
        if self.result.end is TurnEnd.STOP:
            return None
        text = self._detokenizer.flush()
        self.result.text += text
        return self._trace.token(text, ()) if text else None

    def _cut(self, text: str) -> str:
        """`text` up to the end of the first stop string that it completes."""
        before = self.result.text[-(self._longest - 1) :] if self._longest > 1 else ""
        window = before + text
        found = [(window.find(s) + len(s), s) for s in self.options.stop if s in window]
        if not found:
            return text
        end, stop = min(found)
        self.result.end, self.result.stop = TurnEnd.STOP, stop
        return window[len(before) : end]
