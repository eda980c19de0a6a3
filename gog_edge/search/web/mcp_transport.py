"""How MCP messages travel: lines over a child process's pipes, or POSTs that answer with JSON or an event stream."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.search.base import Deadline
from gog_edge.search.web.address import AddressPolicy, shorten
from gog_edge.search.web.http import HttpClient, Request, Response, RetryableError
from gog_edge.search.web.mcp import PROTOCOL, SessionLostError
from gog_edge.search.web.template import Secrets, fill

log = logging.getLogger("gog_edge.search")
MAX_LINE = 16 << 20
_QUIT_SECONDS = 2.0


class StdioTransport:
    """A server as a child process, one JSON message per line. Started when first needed, and again after it died.

    Args:
        command: program and arguments; no shell is involved.
        env: variables added to a small base (PATH, HOME, LANG …); values may be `${NAME}` templates.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, secrets: Secrets | None = None
    ) -> None:
        if not command:
            raise SearchError("an MCP server over stdio needs a command")
        self._command, self._env = list(command), dict(env or {})
        self._secrets = secrets or Secrets()
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def exchange(self, message: Mapping[str, Any], deadline: Deadline) -> dict[str, Any] | None:
        deadline.check("MCP")
        with self._lock:
            if self._server is None:
                self._server = self._start()
            server = self._server
        return server.exchange(message, deadline)

    def reset(self) -> None:
        self.close()

    def close(self) -> None:
        """End the server: close its input, then terminate, then kill. Idempotent."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.end()

    def _start(self) -> _Server:
        base = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER") if k in os.environ}
        env = {**base, **{k: str(v) for k, v in fill(self._env, {}, self._secrets).items()}}
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
            )
        except OSError as e:
            raise SearchError(f"MCP server {self._command[0]} can't be started ({e.strerror or e})") from e
        return _Server(self._command[0], process, self._secrets)


class _Server:
    """One running process. Writing and reading have threads of their own, so neither can outlast a deadline."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], secrets: Secrets) -> None:
        self._name, self._process, self._secrets = name, process, secrets
        self._lock = threading.Lock()
        self._ended = False
        self._outbox: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._waiting: dict[Any, queue.SimpleQueue[dict[str, Any] | None]] = {}
        for work, pipe in ((self._write, process.stdin), (self._read, process.stdout), (self._drain, process.stderr)):
            threading.Thread(target=work, args=(pipe,), name="gog-mcp", daemon=True).start()

    def exchange(self, message: Mapping[str, Any], deadline: Deadline) -> dict[str, Any] | None:
        number = message.get("id")
        answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            if self._ended:
                raise SessionLostError(f"MCP server {self._name} ended")
            if number is not None:
                self._waiting[number] = answers
        self._outbox.put(message)
        if number is None:
            return None
        try:
            answer = answers.get(timeout=deadline.timeout())
        except queue.Empty as e:
            raise SearchTimeoutError(f"MCP server {self._name}: no answer in time") from e
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer is None:
            raise SessionLostError(f"MCP server {self._name} ended")
        return answer

    def end(self) -> None:
        """Close its input, wait, terminate, wait, kill."""
        self._outbox.put(None)
        for act in (None, self._process.terminate, self._process.kill):
            if act is not None:
                act()
            try:
                self._process.wait(_QUIT_SECONDS)
                return
            except subprocess.TimeoutExpired:
                log.debug("MCP server %s does not end", self._name)

    def _write(self, pipe: IO[bytes]) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()
            pipe.close()
        except (OSError, ValueError) as e:
            log.debug("MCP server %s: %s", self._name, e)  # it ended: the reader tells whoever waits

    def _read(self, pipe: IO[bytes]) -> None:
        """Whatever ends the reading, those that wait are told: a server that can't be heard has ended."""
        try:
            self._listen(pipe)
        finally:
            with self._lock:
                self._ended = True
                for waiting in self._waiting.values():
                    waiting.put(None)
            self._outbox.put(None)
            pipe.close()

    def _listen(self, pipe: IO[bytes]) -> None:
        while line := pipe.readline(MAX_LINE):
            message = _as_object(line)
            if message is None:
                log.warning("MCP server %s wrote a line that is no JSON object", self._name)
            elif "method" in message and "id" in message:
                self._outbox.put(answer_to_server(message))
            else:
                number = message.get("id")
                with self._lock:  # ours are whole numbers; a list or an object could not even be looked up
                    waiting = self._waiting.get(number) if type(number) is int else None
                if waiting is not None:
                    waiting.put(message)

    def _drain(self, pipe: IO[bytes]) -> None:
        """A server that logs must not block on a full pipe."""
        while line := pipe.readline(4096):
            log.debug("MCP server: %s", self._secrets.redact(line.decode("utf-8", "replace").rstrip())[:500])
        pipe.close()


class HttpTransport:
    """Streamable HTTP: every message is a POST; the answer is JSON or an event stream.

    Args:
        url: the endpoint, trusted as configured.
        headers: added to every request; values may be `${NAME}` templates.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, secrets: Secrets | None = None) -> None:
        self._url, self._headers = url, dict(headers or {})
        self._secrets = secrets or Secrets()
        self._client = HttpClient(AddressPolicy().allowing(url), redirects=0)
        self._session = ""

    def exchange(self, message: Mapping[str, Any], deadline: Deadline) -> dict[str, Any] | None:
        headers = {k: str(v) for k, v in fill(self._headers, {}, self._secrets).items()}
        headers |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self._session:
            headers |= {"Mcp-Session-Id": self._session}
        if message.get("method") != "initialize":
            headers |= {"MCP-Protocol-Version": PROTOCOL}
        number = message.get("id")
        request = Request(self._url, "POST", headers, json.dumps(message).encode())
        response = self._client.send(request, deadline, until=lambda body: _answer_in(body, number) is not None)
        self._check(response)
        self._session = response.headers.get("mcp-session-id", self._session)
        if number is None:
            return None
        if response.content_type == "text/event-stream":
            answer = _answer_in(response.body + b"\n\n", number)
        else:
            answer = _as_object(response.body)
        if answer is None:
            raise SearchError(f"{shorten(self._url)}: no JSON-RPC answer")
        return answer

    def reset(self) -> None:
        self._session = ""

    def close(self) -> None:
        """Tell the server that the session is over, if there is one, and close connections."""
        if self._session:
            try:
                request = Request(self._url, "DELETE", {"Mcp-Session-Id": self._session})
                self._client.send(request, Deadline.after(_QUIT_SECONDS))
            except SearchError as e:
                log.debug("%s", e)
            self._session = ""
        self._client.close()

    def _check(self, response: Response) -> None:
        status, where = response.status, shorten(self._url)
        if 200 <= status < 300:
            return
        if status == 404 and self._session:
            raise SessionLostError(f"{where}: the session is gone")
        if status in (408, 429) or status >= 500:
            raise RetryableError(f"{where}: HTTP {status}")
        raise SearchError(f"{where}: HTTP {status}")


def answer_to_server(message: Mapping[str, Any]) -> dict[str, Any]:
    """Our answer to a request of the server: pings are answered, everything else is not supported."""
    if message.get("method") == "ping":
        return {"jsonrpc": "2.0", "id": message["id"], "result": {}}
    error = {"code": -32601, "message": "not supported by this client"}
    return {"jsonrpc": "2.0", "id": message["id"], "error": error}


def _answer_in(stream: bytes, number: Any) -> dict[str, Any] | None:
    """The complete event of an event stream that answers request `number`."""
    if number is None:
        return None
    for event in stream.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        message = _as_object(b"\n".join(lines)) if lines else None
        if message is not None and message.get("id") == number and ("result" in message or "error" in message):
            return message
    return None


def _as_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
