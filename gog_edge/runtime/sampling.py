"""From logits to a token: greedy by default; temperature, top-k, top-p, min-p and repetition penalty with a seed.

What each of them does, and in which order, is what transformers' logits processors do: first the penalty, over the
prompt and what was generated; then, when sampling, temperature, top-k, top-p, min-p.

One uniform number is drawn per emitted token and nothing else consumes the generator, so a run is reproducible and
does not depend on whether tokens were verified one at a time or several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.errors import EngineError, UsageError

if TYPE_CHECKING:
    from gog_edge.runtime.dialects.spec import SamplingSpec

F32 = NDArray[np.float32]


NEARLY_GREEDY = 1e-5
"""Temperatures below this are greedy: Qwen's files spell it 1e-6, which leaves chance to equal logits alone."""
_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda v: 0 <= v < 100, "from 0 to below 100"),
    "top_k": (lambda v: v >= 0, "0 or more"),
    "top_p": (lambda v: 0 < v <= 1, "above 0, at most 1"),
    "min_p": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "repetition_penalty": (lambda v: 0 < v < 100, "above 0, below 100"),
    "seed": (lambda v: v >= 0, "0 or more"),
}
_TOP_K = 50  # transformers' own, where a configuration says do_sample and nothing of top_k


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None: not said here; what lies below decides (`over`), in the end the neutral value.

    Args:
        temperature: 0 is greedy (the most likely token, always); neutral.
        top_k: keep the k most likely tokens; 0 keeps all (neutral), 1 is greedy.
        top_p: keep the smallest set whose probability reaches this; 1 keeps all (neutral).
        min_p: drop tokens less likely than this share of the most likely one; 0 is neutral.
        repetition_penalty: divide positive (multiply negative) logits of tokens already in the conversation
            (Keskar et al. 2019); 1 is off (neutral).
        seed: of the random generator.

    Raises:
        UsageError: a value that makes no sense; names it.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (fits, need) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise UsageError(f"{name} is {value}: it must be {need}")

    @classmethod
    def of_checkpoint(cls, generation: Mapping[str, Any]) -> Sampling:
        """What the manifest's `generation` (the checkpoint's generation_config.json) asks for.

        As transformers reads it: without `do_sample` it is greedy, and the penalty still holds; with it, the
        temperature is 1 and the 50 most likely tokens are drawn from unless the file says otherwise.

        Raises:
            UsageError: a value that makes no sense.
        """
        said = {k: generation[k] for k in ("top_k", "top_p", "min_p", "repetition_penalty") if k in generation}
        if not generation.get("do_sample"):
            return cls(temperature=0.0, **said)
        return cls(temperature=generation.get("temperature", 1.0), **{"top_k": _TOP_K, **said})

    @classmethod
    def of_dialect(cls, spec: SamplingSpec) -> Sampling:
        """A dialect's [sampling] table.

        Raises:
            UsageError: a value that makes no sense.
        """
        return cls(**asdict(spec))

    def over(self, *below: Sampling) -> Sampling:
        """What is said here, then by each of `below` in order; the seed is this one's."""
        merged = self
        for lower in below:
            gaps = {f.name: getattr(lower, f.name) for f in fields(merged) if getattr(merged, f.name) is None}
            merged = replace(merged, **gaps)
        return merged

    @property
    def greedy(self) -> bool:
        """The most likely token is taken, always."""
        return (self.temperature or 0.0) < NEARLY_GREEDY or self.top_k == 1

    def describe(self) -> str:
        """For people: "greedy", or "temperature 0.7, top-k 20"; with the penalty where there is one."""
        parts = ["greedy"] if self.greedy else [f"temperature {self.temperature:g}"]
        if not self.greedy:
            parts += [f"top-k {self.top_k}"] if self.top_k else []
            parts += [f"top-p {self.top_p:g}"] if self.top_p is not None and self.top_p < 1 else []
            parts += [f"min-p {self.min_p:g}"] if self.min_p else []
        if self.repetition_penalty not in (None, 1):
            parts.append(f"repetition penalty {self.repetition_penalty:g}")
        return ", ".join(parts)


GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
"""Always the most likely token, whatever the checkpoint says: for comparing engines."""


class Sampler:
    """The state of one question's sampling: its generator and the tokens that the penalty looks at."""

    def __init__(self, options: Sampling, history: Iterable[int] = ()) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._penalty = 1.0 if options.repetition_penalty is None else options.repetition_penalty
        self._seen: set[int] = set()
        self._ids = np.empty(0, np.int64)  # the same as an array
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
            raise EngineError(f"{what}; try another precision, or run gog-edge doctor --bundle")
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
        point = self._random.random() * total[-1]
        return int(ids[min(int(np.searchsorted(total, point, side="right")), len(total) - 1)])
