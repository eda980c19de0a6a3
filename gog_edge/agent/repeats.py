"""A policy that repeats a call that fails is told once, and then stopped.

The rule: a call counts as the same if it has the same kind, text, box and image; if nothing is set up that does calls
of its kind, the kind alone; if it is used up, the refusal. A call that failed before in this question and fails again
comes back with `TOLD`. A turn that holds nothing but calls that fail for the third time is the last: the policy is made
to answer. Calls are executed every time, since a server may be back. Turns that can't be read are not counted here: a
dialect says how many of them it takes (`limits.errors_in_row`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from gog_edge.types import ActionKind, Observation

TOLD = "The same call failed before: make a different one, or answer."
MOST = 3  # failures of the same call


@dataclass
class RepeatedFailures:
    """Of one question. `can`: whether anything is set up that does calls of a kind."""

    can: Callable[[ActionKind], bool]
    _failures: Counter[Hashable] = field(default_factory=Counter)

    def told(self, observations: Sequence[Observation]) -> tuple[list[Observation], bool]:
        """The observations, with what the policy is told about repeated failures; and whether it is stopped now."""
        counts = [self._count(observation) for observation in observations]
        told = [_told(o) if count == MOST - 1 else o for o, count in zip(observations, counts)]
        return told, min(counts, default=0) >= MOST

    def _count(self, observation: Observation) -> int:
        """How often this call has failed, with this time; 0 if it did not fail."""
        action = observation.action
        key: Hashable
        if action.kind is ActionKind.INVALID and action.label == "limit":
            key = action.text
        elif not observation.error:
            return 0
        elif not self.can(action.kind):
            key = action.kind
        else:
            key = (action.kind, action.text, action.region, action.image)
        self._failures[key] += 1
        return self._failures[key]


def _told(observation: Observation) -> Observation:
    if observation.action.kind is ActionKind.INVALID:
        action = observation.action
        return replace(observation, action=replace(action, text=f"{action.text} {TOLD}".strip()))
    return replace(observation, error=f"{observation.error}. {TOLD}")
