"""How fast this machine is, measured while a question runs, and what that leaves time for before a deadline."""

from __future__ import annotations

import math
from dataclasses import dataclass

ANSWER_TOKENS = 32  # a forced answer is given time for this many tokens
_MARGIN_S = 0.05
_FIRST_SHARE = 0.25  # of the whole time, kept for the answer before anything was measured
_MOST_SHARE = 0.5


@dataclass
class Pace:
    """Seconds per prefilled and per written token, smoothed; None until measured."""

    prefill_s: float | None = None
    token_s: float | None = None

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A prefill of `tokens` took `seconds`."""
        if tokens >= 8:  # fewer say more about one step's overhead than about the rate
            rate = seconds / tokens
            self.prefill_s = rate if self.prefill_s is None else self.prefill_s + 0.5 * (rate - self.prefill_s)

    def wrote(self, seconds: float | None) -> None:
        """Seconds of a decoding step, smoothed elsewhere."""
        self.token_s = seconds if seconds is not None else self.token_s

    def reading(self, tokens: int) -> float:
        """Seconds that reading `tokens` will take; 0 while nothing is known."""
        return tokens * (self.prefill_s or self.token_s or 0.0)

    def reserve(self, forced_tokens: int, total: float) -> float:
        """Seconds to keep for the forced answer of a question that has `total` seconds in all."""
        if math.isinf(total):
            return 0.0
        if self.token_s is None:
            return _FIRST_SHARE * total
        wanted = self.reading(forced_tokens) + ANSWER_TOKENS * self.token_s + _MARGIN_S
        return min(wanted, _MOST_SHARE * total)
