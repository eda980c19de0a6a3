"""The HTTP service: POST /v1/ask, /v1/chat/completions, /v1/responses (JSON or server-sent events); GET / is a page.

`at_once` questions run at a time: more than one where they share the policy's runs, else one fills the machine. `queue`
more may wait, further ones get 429. A client that closes its connection cancels its question, whether it waits or runs,
streams or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gog_edge._version import __version__
from gog_edge.errors import GogEdgeError, UsageError
from gog_edge.serve.access import DESCRIPTION, HEALTH, MANUAL, AccessMiddleware
from gog_edge.serve.chat import PATH as CHAT
from gog_edge.serve.chat import Completion, parse_chat
from gog_edge.serve.fields import FieldError
from gog_edge.serve.limits import ServeLimits
from gog_edge.serve.metrics import CONTENT_TYPE, Metrics
from gog_edge.serve.observed import OUTCOME, ObservedMiddleware
from gog_edge.serve.openapi import openapi_json, openapi_page
from gog_edge.serve.page import PAGE, PAGE_HEADERS, page
from gog_edge.serve.refusal import ASK, Refused, explained, refusal
from gog_edge.serve.responses import PATH as RESPONSES
from gog_edge.serve.responses import Reply, parse_responses
from gog_edge.serve.wire import Call, Events, model_json, models_json, parse_ask, parse_json, sse
from gog_edge.serve.worker import Job, Worker
from gog_edge.types import Answer, Event

if TYPE_CHECKING:
    from gog_edge.agent.agent import Agent

MODELS = "/v1/models"
_CLIENT_LEFT = 499  # nginx's number; nobody is there to read it
_WIND_DOWN_SECONDS = 3.0

Parse = Callable[[Any], Call]


class Rendering(Protocol):
    """The reply to one call, in the shape of its address."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer, at once."""
        ...

    def begin(self) -> Iterable[dict[str, Any]]:
        """Of a stream: what comes before the first event."""
        ...

    def chunks(self, event: Event) -> Iterable[dict[str, Any]]:
        """Of a stream: what an event is to the client."""
        ...

    def failed(self, refused: Refused) -> Iterable[dict[str, Any]]:
        """Of a stream: how the client is told that the question failed."""
        ...


class BytesInFlight:
    """The memory that bodies take, over all requests. Used on the event loop only."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self, count: int) -> None:
        """Count `count` more bytes.

        Raises:
            Refused: that would be more than there may be.
        """
        if self.taken + count > self.most:
            raise Refused(503, "too much is being uploaded: try again", {"Retry-After": "1", "Connection": "close"})
        self.taken += count


class Upload:
    """The bytes of one request's body; `release` when its question has ended."""

    def __init__(self, all_of_them: BytesInFlight) -> None:
        self._all, self._mine = all_of_them, 0

    async def read(self, request: Request, most: int) -> bytearray:
        """The whole body.

        Raises:
            Refused: it is larger than `most`, which is noticed before it is read where its length is stated; or all
                bodies together are too large. ClientDisconnect: the client left.
        """
        too_large = Refused(413, f"the body is larger than {most >> 20} MiB", {"Connection": "close"})
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated[:20]) > most:
            raise too_large
        data = bytearray()
        async for chunk in request.stream():
            if len(data) + len(chunk) > most:
                raise too_large
            self._all.take(len(chunk))
            self._mine += len(chunk)
            data += chunk
        return data

    def release(self) -> None:
        """Idempotent."""
        self._all.taken -= self._mine
        self._mine = 0


class Service:
    """The handlers around one agent."""

    def __init__(self, agent: Agent, name: str, queue: int, limits: ServeLimits, at_once: int = 1) -> None:
        self.name, self.limits = name, limits
        self.metrics = Metrics(__version__, name)
        self.worker = Worker(agent, queue, self.metrics, at_once)
        self.since = int(time.time())
        self._in_flight = BytesInFlight(limits.in_flight)

    async def ask(self, request: Request) -> Response:
        return await self._question(request, parse_ask, lambda _: Events())

    async def chat(self, request: Request) -> Response:
        return await self._question(request, parse_chat, lambda call: Completion(call, self.name))

    async def responses(self, request: Request) -> Response:
        return await self._question(request, parse_responses, lambda call: Reply(call, self.name))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "bundle": self.name})

    async def models(self, _: Request) -> Response:
        return JSONResponse(models_json(self.name, self.since))

    async def model(self, request: Request) -> Response:
        if (asked := request.path_params["name"]) != self.name:
            raise Refused(404, f"there is no model {asked!r} here: this server has {self.name!r}")
        return JSONResponse(model_json(self.name, self.since))

    async def counted(self, _: Request) -> Response:
        return Response(self.metrics.text(*self.worker.load), media_type=CONTENT_TYPE)

    async def described(self, _: Request) -> Response:
        return JSONResponse(openapi_json(self.limits))

    async def manual(self, _: Request) -> Response:
        return HTMLResponse(openapi_page(openapi_json(self.limits)), headers=PAGE_HEADERS)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ends what runs when the server does."""
        yield
        await asyncio.to_thread(self.worker.close, _WIND_DOWN_SECONDS)

    async def _question(self, request: Request, parse: Parse, rendered: Callable[[Call], Rendering]) -> Response:
        self.worker.check_room()  # before anything is read
        with ExitStack() as held:
            upload = Upload(self._in_flight)
            held.callback(upload.release)
            try:
                data = await upload.read(request, self.limits.body)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)
            call = await asyncio.to_thread(lambda: self._checked(parse(parse_json(data))))
            rendering = rendered(call)
            job = self.worker.submit(call.request)
            held.callback(self.worker.cancel, job)
            request.scope[OUTCOME] = lambda: job.outcome
            if call.stream:
                return _Events(_events(job, rendering), held.pop_all())
            return await _reply(request, job, rendering)

    def _checked(self, call: Call) -> Call:
        """A call whose answer can have the form that it asks for."""
        if call.request.schema is not None:
            try:
                self.worker.agent.grammar.check(call.request.schema)
            except UsageError as e:
                raise FieldError(call.form, f"{call.form}: {e}") from e
        return call


async def _reply(request: Request, job: Job, rendering: Rendering) -> Response:
    """The answer, unless the client leaves before it is there."""
    answer = asyncio.ensure_future(job.answer())
    left = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(rendering.whole(answer.result())) if answer.done() else Response(status_code=_CLIENT_LEFT)
    finally:
        answer.cancel()
        left.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _events(job: Job, rendering: Rendering) -> AsyncIterator[str]:
    """Events as they happen; a failure becomes an event, since the status line is long gone."""
    for chunk in rendering.begin():
        yield sse(chunk)
    try:
        while (event := await job.next()) is not None:
            for chunk in rendering.chunks(event):
                yield sse(chunk)
    except GogEdgeError as e:
        for chunk in rendering.failed(explained(e)):
            yield sse(chunk)
    yield "data: [DONE]\n\n"


class _Events(StreamingResponse):  # type: ignore[misc]
    """Server-sent events; closes `held` when they have ended, or the client has left, even before the first."""

    def __init__(self, events: AsyncIterator[str], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Not the base's: whether that one notices that the client left depends on uvicorn's version."""
        with self._held:
            sent, left = asyncio.ensure_future(self.stream_response(send)), asyncio.ensure_future(_left(receive))
            try:
                await asyncio.wait({sent, left}, return_when=asyncio.FIRST_COMPLETED)
                if sent.done():
                    with suppress(OSError):  # it left while something was sent
                        sent.result()
            finally:
                sent.cancel()
                left.cancel()
                await asyncio.wait({sent, left})


class _LastResort:
    """The outermost layer: what the end of the server cuts short, or a fault of ours, gets a reply and one line in the
    log instead of a traceback for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, watched)
            return
        except asyncio.CancelledError:
            refused = Refused(503, "the server is stopping: try again later", {"Connection": "close"})
        except Exception as e:  # noqa: BLE001 - it is logged there
            refused = explained(e)
        if begun:  # a stream: it has no [DONE], which says that it was cut
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await refusal(scope["path"], refused)(scope, receive, send)


async def _failed(request: Request, error: Exception) -> Response:
    return refusal(request.url.path, explained(error))


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(request.url.path, Refused(error.status_code, f"{error.detail}: see docs/server.md", error.headers))


def create_app(
    agent: Agent,
    *,
    name: str,
    queue: int = 8,
    at_once: int = 1,
    limits: ServeLimits | None = None,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    key: str | None = None,
) -> Starlette:
    """The ASGI application around one agent.

    Args:
        name: of the bundle, for replies.
        queue: how many questions may wait.
        at_once: how many run side by side (see `Agent.most_together`).
        hosts, origins, key: who may ask (see `AccessMiddleware`).
    """
    service = Service(agent, name, queue, limits or ServeLimits(), at_once)
    routes = [
        Route(ASK, service.ask, methods=["POST"]),
        Route(CHAT, service.chat, methods=["POST"]),
        Route(RESPONSES, service.responses, methods=["POST"]),
        Route(MODELS, service.models),
        Route(MODELS + "/{name:path}", service.model),
        Route(HEALTH, service.health),
        Route("/metrics", service.counted),
        Route(DESCRIPTION, service.described),
        Route(MANUAL, service.manual),
        *(Route(path, page) for path in PAGE),
    ]
    paths = {route.path for route in routes}
    middleware = [
        Middleware(ObservedMiddleware, metrics=service.metrics, paths=paths),
        Middleware(_LastResort),
        Middleware(AccessMiddleware, hosts=hosts, origins=origins, key=key),
    ]
    if origins:
        headers, methods = ("Authorization", "Content-Type"), ("GET", "POST")
        cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=methods, allow_headers=headers)
        middleware.insert(2, cors)
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={GogEdgeError: _failed, HTTPException: _not_here},
        lifespan=service.lifespan,
    )
