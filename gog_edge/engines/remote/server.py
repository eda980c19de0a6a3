"""A server of OpenAI's protocol: found, asked for a turn, listened to; every failure in one clear line.

httpx does the HTTP. A turn is read by a thread of its own, so that whoever waits for it can stop at any moment: the
deadline or a cancellation shuts the connection, which these servers take as the end of their work. A turn is asked for
again only while nothing of it has arrived; what it decides is done here, once, when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from gog_edge.deadline import Budget, seconds_of
from gog_edge.engines.remote.options import RemoteOptions, ServerKind, parse_address
from gog_edge.engines.remote.wire import CONTINUES, Piece, TurnRequest, error_text, piece_of, pieces
from gog_edge.errors import ContextOverflowError, EngineError, GogEdgeError

_AGAIN = frozenset({408, 429, 502, 503, 504})
_OWNERS: Mapping[str, ServerKind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
_LONGEST_WAIT = 30.0  # seconds before the next attempt, whatever the server asks for


class Server:
    """One server and the policy on it. Thread-safe.

    Raises:
        UsageError: the address can't be read. ImportError: httpx is missing.
        EngineError: the server can't be reached, refuses the key, or does not serve the model.
    """

    def __init__(self, address: str, options: RemoteOptions) -> None:
        import httpx

        self.base, named = parse_address(address)
        self.options = options
        self._httpx = httpx
        self._key = os.environ.get(options.key_env, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(seconds_of(options.read_timeout), connect=seconds_of(options.connect_timeout))
        self._client = httpx.Client(headers=headers, timeout=timeout)  # redirects are not followed
        try:
            self.kind, self.model, self.context = self._ask_for(named or options.model)
        except BaseException:
            self._client.close()
            raise

    @property
    def continues(self) -> bool:
        """Whether a turn can be begun for the policy."""
        return self.kind in CONTINUES

    def close(self) -> None:
        """Close idle connections. Idempotent."""
        self._client.close()

    def turn(self, request: TurnRequest) -> TurnStream:
        """Ask for a turn; it is written while the stream is read."""
        return TurnStream(self, request.body(self.model, self.kind))

    # -- for streams -----------------------------------------------------------------------------------------

    def post(self, body: Mapping[str, Any], stopped: threading.Event, opened: _Opened) -> Iterator[Piece]:
        """The pieces of one attempt after the other; raises as `TurnStream.read`."""
        begun = False
        for attempt in range(self.options.retries + 1):
            last = attempt == self.options.retries
            wait = min(0.5 * 2.0**attempt, _LONGEST_WAIT)
            try:
                with self._client.stream("POST", f"{self.base}/chat/completions", json=body) as response:
                    opened.now(response)
                    if response.status_code in _AGAIN and not last:
                        wait = _asked_wait(response.headers.get("retry-after", ""), wait)
                    else:
                        self._check(response)
                        for piece in _said(response):
                            begun = True
                            yield piece
                        return
            except self._httpx.HTTPError as e:
                if begun:
                    raise EngineError(f"{self.base}: the connection broke in the middle of a turn ({_why(e)})") from e
                if last or isinstance(e, self._httpx.ReadTimeout):
                    raise self._unreachable(e) from e
            if stopped.wait(wait):
                return

    # -- what is there ---------------------------------------------------------------------------------------

    def _ask_for(self, wanted: str) -> tuple[ServerKind, str, int]:
        """(kind, model, tokens of its context or 0)."""
        listed = self._get(f"{self.base}/models")
        data = listed.get("data") if isinstance(listed, dict) else None
        models = [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)] if data else []
        names = [str(m["id"]) for m in models]
        if not wanted and len(names) != 1:
            raise EngineError(f"{self.base} serves {_list(names)}: name one after the address, as in openai:URL#NAME")
        if wanted and names and wanted not in names:
            raise EngineError(f"{self.base} has no model {wanted!r}; it serves {_list(names)}")
        model = wanted or names[0]
        about = next((m for m in models if m["id"] == model), {})
        return self._kind(about), model, _context(about)

    def _kind(self, about: Mapping[str, Any]) -> ServerKind:
        if self.options.kind != "auto":
            return self.options.kind
        found = _OWNERS.get(str(about.get("owned_by", "")).lower())
        if found is not None:
            return found
        try:  # `transformers serve` says who it is by its routes alone
            routes = self._get(f"{self.base.rsplit('/', 1)[0]}/openapi.json")
        except EngineError:
            return "openai"
        known = isinstance(routes, dict) and isinstance(routes.get("paths"), dict) and "/load_model" in routes["paths"]
        return "transformers" if known else "openai"

    def _get(self, url: str) -> Any:
        try:
            response = self._client.get(url)
        except self._httpx.HTTPError as e:
            raise self._unreachable(e) from e
        self._check(response)
        try:
            return response.json()
        except (ValueError, RecursionError) as e:
            raise EngineError(f"{url} answers something that is not JSON: is this an OpenAI-compatible server?") from e

    # -- what went wrong -------------------------------------------------------------------------------------

    def _check(self, response: Any) -> None:
        status = int(response.status_code)
        if status == 200:
            return
        with contextlib.suppress(self._httpx.HTTPError):
            response.read()
        raise self._refused(status, self._says(response))

    def _refused(self, status: int, said: str) -> GogEdgeError:
        tail = f" ({said})" if said else ""
        if status in (401, 403):
            what = "refuses the key in" if self._key else "wants a key: set"
            return EngineError(f"{self.base} {what} {self.options.key_env} (HTTP {status}){tail}")
        if status == 404:
            return EngineError(f"{self.base} has no such model or no chat completions (HTTP 404){tail}")
        if status == 413:
            hint = "show smaller pictures (image_max_pixels, crop_max_pixels), or raise the server's limit"
            return EngineError(f"{self.base}: the conversation is too large for the server (HTTP 413): {hint}{tail}")
        if 300 <= status < 400:
            return EngineError(f"{self.base} redirects (HTTP {status}), which is not followed: name the final address")
        if status == 400 and "context" in said.lower():
            return ContextOverflowError(f"{self.base}: the conversation exceeds the server's context{tail}")
        return EngineError(f"{self.base}: HTTP {status}{tail}")

    def _says(self, response: Any) -> str:
        try:
            text = error_text(response.json())
        except (ValueError, RecursionError, self._httpx.HTTPError):
            text = ""
        return text.replace(self._key, "[removed]") if self._key else text

    def _unreachable(self, error: Exception) -> EngineError:
        timeout = isinstance(error, self._httpx.TimeoutException)
        what = "does not answer in time" if timeout else "can't be reached: is the server running?"
        return EngineError(f"{self.base} {what} ({_why(error)})")


class _Opened:
    """The response that is being read, so that another thread can end it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._ended = False

    def now(self, response: Any) -> None:
        stream = response.extensions.get("network_stream")
        found = stream.get_extra_info("socket") if stream is not None else None
        with self._lock:
            self._socket = found
            if self._ended:
                self._shut()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class TurnStream:
    """A turn as it arrives. Read by one thread; `close` may come from any."""

    def __init__(self, server: Server, body: Mapping[str, Any]) -> None:
        self._queue: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._opened = _Opened()
        self._done = False
        threading.Thread(target=self._listen, args=(server, body), name="gog-remote", daemon=True).start()

    def read(self, budget: Budget) -> Iterator[Piece]:
        """The next pieces, until the turn's end. An iterator that is left can be followed by another one.

        Raises:
            CancelledError, DeadlineReached: the budget ended; reading may go on under another.
            EngineError: the server can't be reached, refuses, or failed. ContextOverflowError: it is too long for it.
        """
        woken = object()
        while not self._done:
            budget.check()
            with budget.on_stop(lambda: self._queue.put(Piece())):
                left = budget.remaining()
                try:
                    got = self._queue.get(timeout=None if left == float("inf") else max(left, 0.001))
                except queue.Empty:
                    got = woken  # type: ignore[assignment]
            if got is woken:
                continue
            if got is None:
                self._done = True
            elif isinstance(got, BaseException):
                self._done = True
                raise got
            elif isinstance(got, Piece) and got != Piece():
                yield got

    def close(self) -> None:
        """Stop listening; the server is told by the end of the connection. Idempotent."""
        self._done = True
        self._stopped.set()
        self._opened.end()

    def _listen(self, server: Server, body: Mapping[str, Any]) -> None:
        try:
            for piece in server.post(body, self._stopped, self._opened):
                if self._stopped.is_set():
                    return
                self._queue.put(piece)
        except Exception as e:  # noqa: BLE001 - handed to whoever reads
            self._queue.put(
                e if isinstance(e, GogEdgeError) else EngineError(f"{server.base}: {type(e).__name__}: {e}")
            )
        else:
            self._queue.put(None)


def _said(response: Any) -> Iterator[Piece]:
    """The pieces of a stream, or of a whole answer from a server that does not stream."""
    if "json" in response.headers.get("content-type", ""):
        yield piece_of(response.read().decode("utf-8", "replace"), "message")
        return
    yield from pieces(response.iter_lines())


def _asked_wait(header: str, usual: float) -> float:
    return min(float(header), _LONGEST_WAIT) if header.strip().isascii() and header.strip().isdigit() else usual


def _context(about: Mapping[str, Any]) -> int:
    meta = about.get("meta")
    for found in (about.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None):
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return 0


def _why(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:200]


def _list(names: list[str]) -> str:
    return (", ".join(names[:5]) + (" …" if len(names) > 5 else "")) or "no model"
