"""Two policies for one question: a small one here, and a larger one on a server for what the small one is unsure of.

The rule: the answer from here counts unless there is none, it says that it does not know, or the least log-probability
among the tokens of its last turn lies below a threshold. Then the question is asked again, from its beginning, on the
server; if that fails, the answer from here counts after all. With a deadline, the small policy may use a share of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gog_edge.agent.agent import Agent
from gog_edge.agent.loader import load
from gog_edge.agent.loop import last_answer
from gog_edge.agent.options import RunOptions
from gog_edge.agent.request import AskRequest, spelled_out
from gog_edge.bundle import Bundle
from gog_edge.deadline import Budget, seconds_of
from gog_edge.errors import EngineError, UsageError
from gog_edge.runtime.telemetry import Trace
from gog_edge.types import Answer, AnswerEvent, Event, NoticeEvent, StopReason

_UNKNOWN = frozenset({"unknown", "i don't know", "not known", "unclear"})


@dataclass(frozen=True)
class SplitRule:
    """When the server is asked.

    Args:
        below: log-probability (0 is certain) that the least likely token of the last turn must reach.
        share: of a deadline, for the policy here.

    Raises:
        UsageError: a value that makes no sense.
    """

    below: float = -0.7
    share: float = 0.4

    def __post_init__(self) -> None:
        if not self.below <= 0:
            raise UsageError(f"a log-probability of {self.below} can't be asked for: 0 is certain")
        if not 0 < self.share < 1:
            raise UsageError(f"a share of {self.share} of the deadline: above 0 and below 1 is needed")

    def doubt(self, answer: Answer, least: float | None) -> str:
        """Why the server is asked, in words; empty where it is not."""
        text = answer.text.strip().strip(".").casefold()
        if not text:
            return f"no answer here ({answer.stop.value})"
        if text in _UNKNOWN:
            return f"the answer here is {answer.text.strip()!r}"
        if least is not None and least < self.below:
            return f"a token of the answer here has a log-probability of {least:.2f}"
        return ""


class SplitAgent:
    """Asks `local` first and `remote` when unsure; both stay the caller's, and are closed with it.

    Args:
        local: loaded with `RunOptions(confidence=True)`; without, only answers that are none are doubted.
        remote: usually loaded with an engine on a server.
    """

    def __init__(self, local: Agent, remote: Agent, rule: SplitRule | None = None) -> None:
        self.local, self.remote, self.rule = local, remote, rule or SplitRule()

    @spelled_out(AskRequest)
    def ask(self, request: AskRequest) -> Answer:
        """Answer a question; arguments and errors as `Agent.ask`, of the policy here."""
        return last_answer(self.events(request))

    @spelled_out(AskRequest)
    def stream(self, request: AskRequest) -> Iterator[Event]:
        """Like `ask`, as events; a NoticeEvent says why the server is asked."""
        return self.events(request)

    def events(self, request: AskRequest) -> Iterator[Event]:
        """`stream`, for a request that is made already. Its trace is that of the policy that answers."""
        with Budget(request.deadline, parent=request.budget) as budget:
            trace = request.trace if request.trace is not None else Trace(request.question)
            first = seconds_of(request.deadline) * self.rule.share if request.deadline is not None else None
            here = replace(request, deadline=first, budget=budget, trace=trace)
            answer, doubt = Answer("", StopReason.EXHAUSTED), ""
            for event in self.local.events(here):
                if isinstance(event, AnswerEvent):
                    answer = event.answer
                else:
                    yield event
            if answer.stop is not StopReason.CANCELLED:
                doubt = self.rule.doubt(answer, trace.meta.get("confidence", {}).get("least"))
            if not doubt or budget.remaining() <= 0:
                yield AnswerEvent(answer)
                return
            yield NoticeEvent(f"{doubt}: the server is asked")
            trace.note(f"escalated: {doubt}")
            there = replace(request, deadline=None, budget=budget, trace=Trace(request.question))
            try:
                for event in self.remote.events(there):
                    if isinstance(event, AnswerEvent) and not event.answer.text:
                        event = AnswerEvent(answer)  # better than none
                    yield event
            except EngineError as e:
                yield NoticeEvent(f"the answer from here counts: {e}")
                yield AnswerEvent(answer)

    def close(self) -> None:
        """Close both. Idempotent."""
        self.local.close()
        self.remote.close()

    def __enter__(self) -> SplitAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_split(
    bundle: str | Path | Bundle,
    *,
    escalate: str,
    rule: SplitRule | None = None,
    options: RunOptions | None = None,
    engine: str | None = None,
    engine_options: Any = None,
    **how: Any,
) -> SplitAgent:
    """`load` a policy to run here and the one at `escalate` (openai:URL) for what it is unsure of.

    Args:
        bundle, engine, engine_options: of the policy here; see `load`. The bundle says how both speak.
        options, how: index, search, providers and dialect as for `load`, for both.

    Raises:
        As `load`.
    """
    given = options or RunOptions()
    sure = replace(given, confidence=True)
    local = load(bundle, engine=engine, engine_options=engine_options, options=sure, **how)
    try:
        remote = load(bundle, engine=escalate, options=given, **how)
    except BaseException:
        local.close()
        raise
    return SplitAgent(local, remote, rule)
