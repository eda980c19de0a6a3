"""A small HTTP client in which one deadline holds over everything: connecting, TLS, headers, every read of the body.

On top of http.client: the checked address is the one that is dialled (no second DNS answer), redirects are checked
hop by hop, bodies are read in pieces and cut at a size, compressed ones are unpacked under the same limit, and idle
connections are kept for the next search. Errors name host and path, never the query, where keys may be.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

from gog_edge._version import __version__
from gog_edge.deadline import SYSTEM
from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.search.base import Deadline
from gog_edge.search.web.address import AddressPolicy, Target, shorten

MAX_BYTES = 4 << 20
MAX_REDIRECTS = 5
KEEP_SECONDS = 30.0
KEEP_IDLE = 4
_PIECE = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class RetryableError(SearchError):
    """A failure that may go away: connection trouble, 429, 5xx. `retry_after`: seconds the server asked for."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Request:
    """One HTTP request."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Response:
    """A response: `headers` with lower-case names, `body` unpacked, `url` after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    truncated: bool = False

    @property
    def content_type(self) -> str:
        """Media type without parameters, lower case; empty when the server gave none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Reading:
    """How far a body is read; see `HttpClient.send`."""

    max_bytes: int
    truncate: bool
    until: Callable[[bytes], bool] | None


class HttpClient:
    """Sends requests under an address policy. Thread-safe.

    Args:
        policy: which addresses may be contacted.
        redirects: how many hops are followed; each is checked like the first.
        keep_alive: keep idle connections for the next request to the same host.
    """

    def __init__(self, policy: AddressPolicy, *, redirects: int = MAX_REDIRECTS, keep_alive: bool = True) -> None:
        self.policy = policy
        self._redirects = redirects
        self._keep = keep_alive
        self._idle: dict[tuple[str, str, int], list[tuple[float, _Connection]]] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def send(
        self,
        request: Request,
        deadline: Deadline,
        *,
        max_bytes: int = MAX_BYTES,
        truncate: bool = False,
        until: Callable[[bytes], bool] | None = None,
    ) -> Response:
        """Send and read the whole response (any status).

        Args:
            max_bytes: of the unpacked body.
            truncate: cut a longer body instead of failing.
            until: called with the body so far; True ends reading (event streams that stay open).

        Raises:
            SearchTimeoutError: not finished at the deadline.
            RetryableError: the connection failed or broke.
            SearchError: a refused address, too many redirects, a body that is too large, or invalid HTTP.
        """
        url, method, body = request.url, request.method, request.body
        headers = dict(request.headers)
        for _ in range(self._redirects + 1):
            target = self.policy.resolve(url, deadline)
            response = self._exchange(target, method, headers, body, deadline, Reading(max_bytes, truncate, until))
            location = response.headers.get("location", "")
            if response.status not in _REDIRECTS or not location:
                return response
            if self._redirects == 0:
                raise SearchError(f"{shorten(url)}: answered with a redirect, which is not followed here")
            url = urljoin(url, location)
            if response.status == 303 or (response.status in (301, 302) and method == "POST"):
                method, body = "GET", None
            # Keys stay with the host that they were meant for.
            headers = {k: v for k, v in headers.items() if k.lower() in ("accept", "accept-language", "user-agent")}
        raise SearchError(f"{shorten(request.url)}: more than {self._redirects} redirects")

    def close(self) -> None:
        """Close idle connections. Idempotent."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for _, connection in connections:
                _close(connection)

    def _exchange(
        self,
        target: Target,
        method: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: Deadline,
        reading: Reading,
    ) -> Response:
        where = f"{target.host}{target.path.partition('?')[0][:80]}"
        sent = {
            "Host": target.host_header,
            "User-Agent": f"gog-edge/{__version__}",
            "Accept-Encoding": "gzip",
            **headers,
        }
        for fresh in (False, True):
            connection = None if fresh else self._take(target)
            reused = connection is not None
            if not fresh and not reused:
                continue
            try:
                deadline.check(where)
                connection = connection or self._connect(target, deadline)
                connection.deadline = deadline
                connection.request(method, target.path, body, sent)
                answer = connection.getresponse()
                result = _read(answer, target.url, reading)
                answer.close()  # it was read to its end; http.client only notices by itself when asked once more
            except (http.client.RemoteDisconnected, ConnectionError) as e:
                _close(connection)
                if reused:
                    continue  # the server closed the idle connection: once more on a new one
                raise RetryableError(f"{where}: the connection broke ({type(e).__name__})") from e
            except TimeoutError as e:
                _close(connection)
                raise SearchTimeoutError(f"{where}: no complete answer in time") from e
            except ssl.SSLError as e:
                _close(connection)
                raise SearchError(f"{where}: TLS failed ({e.reason or 'error'})") from e
            except http.client.IncompleteRead as e:
                _close(connection)
                raise RetryableError(f"{where}: the answer was cut off") from e
            except (http.client.HTTPException, zlib.error, ValueError) as e:
                _close(connection)
                raise SearchError(f"{where}: not a valid HTTP answer ({type(e).__name__})") from e
            except OSError as e:
                _close(connection)
                raise RetryableError(f"{where}: {e.strerror or type(e).__name__}") from e
            except BaseException:
                _close(connection)
                raise
            if answer.will_close or result.truncated or not self._keep:
                _close(connection)
            else:
                self._give(target, connection)
            return result
        raise AssertionError("the second round always returns or raises")

    def _connect(self, target: Target, deadline: Deadline) -> _Connection:
        context = None
        if target.scheme == "https":
            with self._lock:
                self._tls = self._tls or ssl.create_default_context()
                context = self._tls
        return _Connection(target, context, deadline)

    def _take(self, target: Target) -> _Connection | None:
        with self._lock:
            idle = self._idle.get((target.scheme, target.host, target.port), [])
            while idle:
                until, connection = idle.pop()
                if until > SYSTEM.now():
                    return connection
                _close(connection)
        return None

    def _give(self, target: Target, connection: _Connection) -> None:
        with self._lock:
            idle = self._idle.setdefault((target.scheme, target.host, target.port), [])
            if len(idle) < KEEP_IDLE:
                idle.append((SYSTEM.now() + KEEP_SECONDS, connection))
                return
        _close(connection)


class _Connection(http.client.HTTPConnection):
    """Dials the checked address; every blocking socket call gets what is left of `deadline`."""

    def __init__(self, target: Target, context: ssl.SSLContext | None, deadline: Deadline) -> None:
        super().__init__(target.host, target.port)
        self._target, self._context, self.deadline = target, context, deadline
        self._raw: socket.socket | None = None

    def connect(self) -> None:
        raw = self._dial()
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                raw.settimeout(_left(self.deadline))
                raw = self._context.wrap_socket(raw, server_hostname=self._target.host)
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        self.sock = _DeadlineSocket(raw, self)

    def end(self) -> None:
        """Close for good."""
        self.close()
        if self._raw is not None:
            self._raw.close()

    def _dial(self) -> socket.socket:
        *others, last = self._target.addresses
        for address in others:
            with contextlib.suppress(ConnectionError, socket.gaierror):
                return socket.create_connection((address, self._target.port), _left(self.deadline))
        return socket.create_connection((last, self._target.port), _left(self.deadline))


class _DeadlineSocket:
    """What http.client needs of a socket: sendall, makefile, close."""

    def __init__(self, raw: socket.socket, connection: _Connection) -> None:
        self._raw, self._connection = raw, connection

    def sendall(self, data: Any) -> None:
        self._raw.settimeout(_left(self._connection.deadline))
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._raw, self._connection), _PIECE)

    def close(self) -> None:
        """http.client releases a socket while the body is still to be read; `_Connection.end` really closes it."""


class _DeadlineReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, connection: _Connection) -> None:
        super().__init__()
        self._raw, self._connection = raw, connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(_left(self._connection.deadline))
        return self._raw.recv_into(buffer)


def _left(deadline: Deadline) -> float | None:
    """Seconds for a socket; a deadline that has passed is an error, since 0 would mean non-blocking."""
    left = deadline.timeout()
    if left is not None and left <= 0:
        raise TimeoutError
    return left


def _read(answer: http.client.HTTPResponse, url: str, reading: Reading) -> Response:
    max_bytes, truncate = reading.max_bytes, reading.truncate
    headers = {name.lower(): value for name, value in answer.getheaders()}
    encoding = headers.get("content-encoding", "").strip().lower()
    unpack = None
    if encoding in ("gzip", "x-gzip"):
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    elif encoding not in ("", "identity"):
        raise SearchError(f"{shorten(url)}: encoded as {encoding[:20]!r}, which was not asked for")
    body = bytearray()
    packed = 0
    while len(body) <= max_bytes:
        piece = answer.read1(_PIECE)
        if not piece:
            break
        packed += len(piece)
        if unpack is None:
            body += piece
        while unpack is not None and piece and len(body) <= max_bytes:
            body += unpack.decompress(piece, max_bytes + 1 - len(body))
            piece = unpack.unconsumed_tail
        if packed > max_bytes + _PIECE:
            break
        if reading.until is not None and reading.until(bytes(body)):
            return Response(answer.status, headers, bytes(body), url, truncated=True)
    too_long = len(body) > max_bytes or packed > max_bytes + _PIECE
    if too_long and not truncate:
        raise SearchError(f"{shorten(url)}: the answer is larger than {max_bytes} bytes")
    if unpack is not None and not too_long and not unpack.eof and packed:
        raise http.client.IncompleteRead(bytes(body))
    length = headers.get("content-length", "")
    if not too_long and length.isdecimal() and packed < int(length) and answer.status not in (204, 304):
        raise http.client.IncompleteRead(bytes(body))
    return Response(answer.status, headers, bytes(body[:max_bytes]), url, too_long)


def _close(connection: _Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.end()
