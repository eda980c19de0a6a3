"""`aask` and `astream`: a question runs in a thread of its own, its events arrive in the caller's event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from gog_edge.agent.dispatch import run_in_thread
from gog_edge.agent.request import AskRequest
from gog_edge.deadline import Budget
from gog_edge.errors import EngineError
from gog_edge.types import Answer, AnswerEvent, Event


async def events_async(run: Callable[[AskRequest], Iterator[Event]], request: AskRequest) -> AsyncIterator[Event]:
    """The events of `run(request)`. Cancelling the task, or closing the iterator, cancels the question; both wait until
    it has ended.

    Raises:
        Whatever `run` raises.
    """
    import asyncio  # only who awaits pays for it: 2 MB and 10 to 20 ms, and a running loop has it already

    loop, coming = asyncio.get_running_loop(), asyncio.Queue[Event | BaseException | None]()
    budget = Budget(parent=request.budget)

    def put(what: Event | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody reads any more
            loop.call_soon_threadsafe(coming.put_nowait, what)

    def work() -> None:
        try:
            for event in run(replace(request, budget=budget)):
                put(event)
        except BaseException as e:  # noqa: BLE001 - raised by whoever reads
            put(e)
        else:
            put(None)

    done = run_in_thread(work, "ask", daemon=False)
    try:
        while (what := await coming.get()) is not None:
            if isinstance(what, BaseException):
                raise what
            yield what
    finally:
        budget.cancel()
        await asyncio.shield(asyncio.wrap_future(done))  # a second cancelling must not reach into the thread


async def answer_async(run: Callable[[AskRequest], Iterator[Event]], request: AskRequest) -> Answer:
    """The answer of `run(request)`; see `events_async`."""
    answer: Answer | None = None
    async for event in events_async(run, request):
        if isinstance(event, AnswerEvent):
            answer = event.answer
    if answer is None:
        raise EngineError("the question ended without an answer event")
    return answer
