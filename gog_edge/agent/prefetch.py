"""Reading ahead: the known parts of an observation are prefilled while its searches still run.

A dialect may show the crop before its results, all have wording before them, and in a turn of several calls the first
results may be there long before the last. What tokens will come is guessed (what two made-up replies have in common);
when the observation is complete, `Session.append` compares token by token, keeps what was guessed right and forgets
the rest. So the conversation does not depend on the guess; nor does its KV cache, to the last bit, with native
operators, whose rows do not depend on how an observation is cut into runs. Elsewhere it would, by rounding, and nothing
is read ahead unless `RunOptions.exact` is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from gog_edge.deadline import Budget
from gog_edge.runtime.session import Session
from gog_edge.types import Action, ActionKind, Hit, Observation, Segment

PAUSE_S = 0.02  # where no decoding step was timed yet

# Two successful replies that differ in all that a reply may say: number, titles, scores, pictures, page text.
_ONE = (Hit("a", "a", "a", 0.25, "a", "a"),)
_TWO = (Hit("1", "1", "1", None, "1", "1"), Hit("2", "2", "2", None, "2", "2"))


@dataclass(frozen=True)
class ReadAhead:
    """For the observation of one turn, on the question's own thread, which has nothing to do but to wait.

    Args:
        session: ends with the turn when this is made; `behind`: its length then.
        wording: the dialect's words for the turn's observations, in the order of its actions.
        reserve: tokens of the context that are kept for the answer.
        pause: seconds that a search is given to end by itself: results that come at once are best read in one run,
            since a run of its own costs about as much as a decoding step (the weights are read once more).
    """

    session: Session
    wording: Callable[[Sequence[Observation]], Sequence[Segment]]
    behind: int
    reserve: int
    pause: float = PAUSE_S

    def read(
        self,
        done: Sequence[Observation],
        waiting: Observation,
        coming: Sequence[Action],
        search: Future[Any],
        budget: Budget,
    ) -> None:
        """Compute what is known while `search` runs; returns at once if it is over.

        Args:
            done: what came back for the actions before.
            waiting: for the action that `search` is for; says which crop it shows.
            coming: the actions after it.

        Raises:
            EngineError: the engine failed. CancelledError, DeadlineReached: `budget` ended.
        """
        if search.done():
            return
        one, two = guesses(done, waiting, coming)
        session = self.session
        if not session.anticipate(self.wording(one), self.wording(two), self.behind, reserve=self.reserve):
            return
        session.encode_images(budget)
        if not budget.wait(search, self.pause):
            session.run(budget=budget)


def guesses(
    done: Sequence[Observation], waiting: Observation, coming: Sequence[Action] = ()
) -> tuple[list[Observation], list[Observation]]:
    """Two ways that a turn's observations may turn out, equal in what is known; arguments as for `ReadAhead.read`."""
    one = [*done, _reply(waiting, _ONE), *(_later(action, "") for action in coming)]
    return one, [*done, _reply(waiting, _TWO), *(_later(action, "failed") for action in coming)]


def _reply(observation: Observation, hits: tuple[Hit, ...]) -> Observation:
    pictures = (0,) if hits is _ONE else ()
    return Observation(observation.action, hits, text=hits[0].text, shown=observation.shown, thumbnails=pictures)


def _later(action: Action, error: str) -> Observation:
    return Observation(action, error="" if action.kind is ActionKind.INVALID else error)
