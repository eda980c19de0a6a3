"""The HTTP service: POST /v1/ask (JSON or server-sent events), POST /v1/chat/completions, GET /healthz.

One question runs at a time, because one policy fills the machine; `queue` more may wait, further ones get 429.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gog_edge._version import __version__
from gog_edge.agent.loop import last_answer
from gog_edge.agent.request import AskRequest
from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.serve.wire import chat_json, event_json, parse_ask, parse_chat
from gog_edge.types import Answer, AnswerEvent, Event

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent

MAX_BODY = 64 << 20


class Service:
    """Serialises questions to one agent. `queue`: how many may wait."""

    def __init__(self, agent: Agent, *, name: str, queue: int = 8) -> None:
        self.agent, self.name = agent, name
        self._slots = threading.Semaphore(queue + 1)
        self._turn = asyncio.Lock()

    async def ask(self, request: Request) -> Response:
        return await self._answer(*parse_ask(await _body(request)), event_json_answer)

    async def chat(self, request: Request) -> Response:
        return await self._answer(*parse_chat(await _body(request)), lambda answer: chat_json(answer, self.name))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "bundle": self.name})

    async def _answer(self, asked: AskRequest, stream: bool, render: Callable[[Answer], dict[str, Any]]) -> Response:
        if not self._slots.acquire(blocking=False):
            return JSONResponse({"error": "too many questions are waiting: try again"}, 429, {"Retry-After": "1"})
        if stream:
            return StreamingResponse(self._events(asked), media_type="text/event-stream")
        try:
            async with self._turn:
                answer = await asyncio.to_thread(lambda: last_answer(self.agent.events(asked)))
        finally:
            self._slots.release()
        return JSONResponse(render(answer))

    async def _events(self, asked: AskRequest) -> AsyncIterator[str]:
        """Events as they happen; closing the connection closes the stream, which cancels the question."""
        try:
            async with self._turn:
                events = self.agent.events(asked)
                try:
                    while (event := await asyncio.to_thread(_next, events)) is not None:
                        yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
                finally:
                    close = getattr(events, "close", None)
                    if close is not None:
                        await asyncio.to_thread(close)
        finally:
            self._slots.release()
        yield "data: [DONE]\n\n"


def event_json_answer(answer: Answer) -> dict[str, Any]:
    """The reply of /v1/ask without streaming: the same fields as the last event."""
    return event_json(AnswerEvent(answer))


def _next(events: Iterator[Event]) -> dict[str, Any] | None:
    """The next event as JSON; a failure becomes an event, since the status line is long gone."""
    try:
        return event_json(next(events))
    except StopIteration:
        return None
    except GogEdgeError as e:
        return {"type": "error", "error": str(e)}


async def _body(request: Request) -> Any:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise UsageError(f"the body is larger than {MAX_BODY >> 20} MiB")
    try:
        return json.loads(data)
    except ValueError as e:
        raise UsageError(f"the body is not JSON: {e}") from e


async def _input_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, 400 if isinstance(error, ValueError) else 500)


def create_app(agent: Agent, *, name: str, queue: int = 8) -> Starlette:
    """The ASGI application around one agent."""
    service = Service(agent, name=name, queue=queue)
    return Starlette(
        routes=[
            Route("/v1/ask", service.ask, methods=["POST"]),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/healthz", service.health),
        ],
        exception_handlers={GogEdgeError: _input_error},
    )
