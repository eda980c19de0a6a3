"""From logits to a token: greedy by default; temperature, top-k, top-p, min-p and repetition penalty with a seed.

What each of them does, and in which order, is what transformers' logits processors do: first the penalty, over the
prompt and what was generated; then, when sampling, temperature, top-k, top-p, min-p.

One uniform number is drawn per emitted token and nothing else consumes the generator, so a run is reproducible and
does not depend on whether tokens were verified one at a time or several at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError
from gog_edge.sampling_options import Sampling

F32 = NDArray[np.float32]


class Sampler:
    """The state of one question's sampling: its generator and the tokens that the penalty looks at."""

    def __init__(self, options: Sampling, history: Iterable[int] = ()) -> None:
        self.options = options
        self._random: np.random.Generator | None = (
            None  # made for the first token that is drawn: loading it takes 15 ms
        )
        self._penalty = 1.0 if options.repetition_penalty is None else options.repetition_penalty
        self._seen: set[int] = set()
        self._ids = np.empty(0, np.int64)  # the same as an array
        self.plain = options.greedy and self._penalty == 1.0  # the largest of the logits as they are, nothing else
        self.restart(history)

    def restart(self, tokens: Iterable[int]) -> None:
        """The conversation is `tokens` now, prompt and image pads included; what was cut off does not count."""
        if self._penalty != 1.0:
            self._seen = set(tokens)
            self._ids = np.fromiter(self._seen, np.int64, len(self._seen))

    def saw(self, tokens: Iterable[int]) -> None:
        """Tokens that joined the conversation."""
        if self._penalty != 1.0:
            fresh = set(tokens) - self._seen
            if fresh:
                self._seen |= fresh
                self._ids = np.append(self._ids, np.fromiter(fresh, np.int64, len(fresh)))

    def choose(self, logits: F32) -> int:
        """A token for logits [V] (not kept, not changed).

        Raises:
            EngineError: the logits are not numbers, or every token is ruled out.
        """
        scores = self._penalise(logits) if self._penalty != 1.0 and self._ids.size else logits
        best = int(scores.argmax())
        top = float(scores[best])  # argmax returns the first NaN if there is one
        if not np.isfinite(top):
            what = "every token is ruled out" if top == -np.inf else "the decoder gave logits that are not numbers"
            raise EngineError(f"{what}; try another precision, or check the bundle: gog-edge inspect DIR --hashes")
        return best if self.options.greedy else self._draw(scores, top)

    def _penalise(self, logits: F32) -> F32:
        scores = logits.copy()
        ids = self._ids[self._ids < scores.size]
        seen = scores[ids]
        scores[ids] = np.where(seen > 0, seen / self._penalty, seen * self._penalty)
        return scores

    def _draw(self, scores: F32, top: float) -> int:
        o = self.options
        ids = np.arange(scores.size)
        if o.top_k and o.top_k < scores.size:  # all that are as likely as the k-th stay
            ids = np.flatnonzero(scores >= np.partition(scores, -o.top_k)[-o.top_k])
        weights = np.exp((scores[ids].astype(np.float64) - top) / (o.temperature or 1.0))
        # descending, ties by id: the draw is a function of the logits alone
        order = np.argsort(-weights, kind="stable")[: np.count_nonzero(weights)]
        ids, chances = ids[order], weights[order]
        total = np.cumsum(chances)
        if o.top_p is not None and o.top_p < 1:
            total = total[: int(np.searchsorted(total, o.top_p * total[-1])) + 1]
        if o.min_p:
            total = total[: int(np.searchsorted(-chances, -o.min_p, side="right"))]
        if self._random is None:
            self._random = np.random.default_rng(o.seed)
        point = self._random.random() * total[-1]
        return int(ids[min(int(np.searchsorted(total, point, side="right")), len(total) - 1)])
