"""From logits to a token: greedy by default; temperature, top-k, top-p, min-p and repetition penalty with a seed.

One uniform number is drawn per emitted token and nothing else consumes the generator, so a run is reproducible and
does not depend on whether tokens were verified one at a time or several at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError, UsageError

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: 0 is greedy (the most likely token, always).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches this; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one.
        repetition_penalty: divide positive (multiply negative) logits of tokens already in the conversation
            (Keskar et al. 2019); 1 is off.
        seed: of the random generator.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("temperature", 0 <= self.temperature < 100, "from 0 to 100"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p < 1, "from 0 to below 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < 100, "above 0"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not ok:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be {need}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """The state of one question's sampling: its generator and the tokens that the penalty looks at."""

    def __init__(self, options: Sampling, history: Iterable[int] = ()) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._penalised = options.repetition_penalty != 1.0
        self._seen: set[int] = set(history) if self._penalised else set()
        self.plain = options.greedy and not self._penalised  # the largest of the logits as they are, nothing else

    def saw(self, tokens: Iterable[int]) -> None:
        """Tokens that joined the conversation."""
        if self._penalised:
            self._seen.update(tokens)

    def choose(self, logits: F32) -> int:
        """A token for logits [V] (not kept, not changed).

        Raises:
            EngineError: the logits are not numbers, or every token is ruled out.
        """
        scores = self._penalise(logits) if self._penalised and self._seen else logits
        best = int(scores.argmax())
        top = float(scores[best])  # argmax returns the first NaN if there is one
        if not np.isfinite(top):
            what = "every token is ruled out" if top == -np.inf else "the decoder gave logits that are not numbers"
            raise EngineError(f"{what}; try another precision, or run gog-edge doctor --bundle")
        return best if self.options.greedy else self._draw(scores, top)

    def _penalise(self, logits: F32) -> F32:
        scores = logits.copy()
        ids = np.fromiter(self._seen, np.int64)
        ids = ids[ids < scores.size]
        seen = scores[ids]
        scores[ids] = np.where(seen > 0, seen / self.options.repetition_penalty, seen * self.options.repetition_penalty)
        return scores

    def _draw(self, scores: F32, top: float) -> int:
        o = self.options
        weights = np.exp((scores.astype(np.float64) - top) / o.temperature)
        if o.min_p:
            weights[weights < o.min_p] = 0.0
        # descending, ties by id: the draw is a function of the logits alone
        order = np.argsort(-weights, kind="stable")
        if o.top_k:
            order = order[: o.top_k]
        chances = weights[order]
        total = np.cumsum(chances)
        if o.top_p < 1:
            kept = int(np.searchsorted(total, o.top_p * total[-1])) + 1
            order, total = order[:kept], total[:kept]
        point = self._random.random() * total[-1]
        return int(order[min(int(np.searchsorted(total, point, side="right")), len(order) - 1)])
