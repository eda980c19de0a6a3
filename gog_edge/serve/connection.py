"""Connections that nobody can hold open: uvicorn's HTTP protocol and server, with time-outs and a limit.

uvicorn limits the size of headers, the time between requests and the time of a shutdown; it waits for ever for
headers, bodies and clients that stop reading, and counts a connection that says nothing like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gog_edge.deadline import SYSTEM
from gog_edge.serve.limits import ServeLimits
from gog_edge.serve.refusal import Refused, error_json

_BACKLOG = 64  # asyncio accepts this many at once, before a limit can look at any of them
_WAITING_IN_KERNEL = 512
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_QUIET_SECONDS = 60.0

log = logging.getLogger(__name__)


def make_server(app: ASGIApp, limits: ServeLimits) -> uvicorn.Server:
    """The server of an application; its `run` takes the listening sockets."""
    places, backlog = within_descriptors(limits.connections)
    protocol = type("BoundedProtocol", (GuardedProtocol,), {"limits": limits, "places": places})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=backlog,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.shutdown_seconds,
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    return GuardedServer(config)


def within_descriptors(connections: int) -> tuple[int, int]:
    """(open connections, backlog) that leave file descriptors for everything else that this process opens."""
    try:
        import resource
    except ImportError:  # Windows: sockets are not counted with files
        return connections, _BACKLOG
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return connections, _BACKLOG
    return max(1, min(connections, most // 2)), max(1, min(_BACKLOG, most // 8))


class GuardedServer(uvicorn.Server):  # type: ignore[misc]
    """A server whose event loop reports what fails in one line, and want of descriptors once a minute."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        await super().startup(sockets)
        for listening in sockets or ():  # the kernel may hold more than asyncio accepts at once
            listening.listen(_WAITING_IN_KERNEL)


class LoopErrors:
    """asyncio's exception handler: at the limit of descriptors it is called for every attempt to accept."""

    def __init__(self) -> None:
        self._said = -_QUIET_SECONDS

    def __call__(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _USED_UP):
            log.error("%s: %r", context.get("message"), error, exc_info=error)
        elif SYSTEM.now() - self._said >= _QUIET_SECONDS:
            self._said = SYSTEM.now()
            log.error("new connections wait, %s: raise `ulimit -n`, or lower --connections", error.strerror)


class GuardedProtocol(H11Protocol):  # type: ignore[misc]
    """One connection. It is *receiving* while headers or a body are not complete, and only then is it closed for
    being slow or for taking another's place."""

    limits = ServeLimits()
    places = limits.connections

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._watched: tuple[str, object] | None = None
        self._since = self.loop.time()
        full = len(self.connections) >= self.places and not self._make_room()
        super().connection_made(transport)
        if full:
            self.give_up(503, "too many connections are open: try again", at_once=True)
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """To bytes that are no HTTP. The request that they follow has a reply then: its own would be one too many."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    @property
    def receiving(self) -> str:
        """ "headers" or "body" while that is awaited, else ""."""
        state = self.conn.their_state
        return "headers" if state is h11.IDLE else "body" if state is h11.SEND_BODY else ""

    def _watch(self) -> None:
        """(Re)start the clock when something else is awaited than before."""
        awaited = self.receiving
        now = (awaited, self.cycle)
        if now == self._watched:
            return
        self._watched, self._since = now, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if awaited:
            seconds = self.limits.header_seconds if awaited == "headers" else self.limits.body_seconds
            message = f"the {awaited} did not arrive within {seconds:g} s"
            self._timer = self.loop.call_later(seconds, self.give_up, 408, message)

    def _make_room(self) -> bool:
        """Close the connection that can best be missed: one that is closing already, else the one that has waited
        longest for headers, else for a body. False if all are being answered."""
        rank = {"headers": 1, "body": 2}
        found = [
            (0 if c.transport.is_closing() else rank[c.receiving], c._since, id(c), c)
            for c in self.connections
            if isinstance(c, GuardedProtocol) and (c.transport.is_closing() or c.receiving)
        ]
        if not found:
            return False
        *_, victim = min(found)
        self.connections.discard(victim)  # now: others may be accepted before it is told that it is lost
        if victim.transport.is_closing():
            victim.transport.abort()
        else:
            victim.give_up(503, "too many connections are open: try again")
        return True

    def give_up(self, status: int, message: str, *, at_once: bool = False) -> None:
        """Close the connection; a request that has begun and has no reply yet gets one, with `at_once` also one that
        has not begun."""
        if self.transport.is_closing():
            return
        path, begun = "", at_once or bool(self.conn.trailing_data[0])
        if self.receiving == "body":
            path, begun = str(self.scope["path"]), not self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun:
            with contextlib.suppress(h11.LocalProtocolError):
                body = json.dumps(error_json(path, Refused(status, message))).encode()
                headers = [("content-type", "application/json"), ("connection", "close")]
                headers.append(("content-length", str(len(body))))
                response = h11.Response(status_code=status, headers=headers, reason=b"")
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self.loop.call_later(self.limits.write_seconds, self.transport.abort)  # if it does not read that reply
