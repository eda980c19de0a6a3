"""How tokens are chosen: what a user, a dialect or a checkpoint can say of it, and who comes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gog_edge.errors import UsageError

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
