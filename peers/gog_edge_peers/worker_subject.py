"""A peer as a subject: a separate process, addressed in JSON lines, with deadlines."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gog_edge.bench.machine.probes import resident_bytes
from gog_edge.bench.subject import Part, Picture, TurnTimes
from gog_edge.errors import BenchError
from gog_edge_peers.environment import clean_environment

START = Path(__file__).parent / "workers" / "start.py"
LOAD_SECONDS, TURN_SECONDS, OTHER_SECONDS = 900.0, 1800.0, 60.0
_TAIL = 12  # lines of stderr that are kept


class WorkerSubject:
    """Runs turns in a worker process. What goes wrong there is one `BenchError` that says what to do.

    Args:
        name: of the subject in the report.
        worker: module in `workers`.
        python: the interpreter of the peer's environment.
        model: folder, or address of a server.
        options: of the worker.
        mends: what to do by kind of failure ("package", "model"), appended to its message.
    """

    def __init__(
        self,
        name: str,
        worker: str,
        python: Path,
        model: str,
        options: Mapping[str, Any] | None = None,
        mends: Mapping[str, str] | None = None,
        *,
        load_seconds: float = LOAD_SECONDS,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self.name = name
        self.about = ""
        self.peak = 0
        self.command = [str(python), "-u", str(START), worker]
        self._model, self.options, self._mends = model, dict(options or {}), dict(mends or {})
        self._load_seconds, self._turn_seconds = load_seconds, turn_seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._errors: deque[str] = deque(maxlen=_TAIL)
        self._threads: list[threading.Thread] = []
        self._pictures: tempfile.TemporaryDirectory[str] | None = None
        self._gone = ""
        self._resident_pid = 0

    def load(self) -> float:
        """Start the process and load the model; seconds without starting and importing. A server that runs already
        gives the time of one request."""
        self.close()
        self._start()
        reply = self._ask({"op": "load", "model": self._model, "options": self.options}, self._load_seconds)
        self.about = str(reply.get("about", ""))
        self.peak = int(reply.get("peak", 0))
        server = urlsplit(self._model)
        if server.scheme in ("http", "https"):
            self.peak = 0
            self._resident_pid = listening_process(server.hostname or "", server.port or 0)
        elif self._process is not None:
            self._resident_pid = self._process.pid
        seconds = reply.get("seconds")
        return float(seconds if seconds is not None else reply.get("ready", 0.0))

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        files: list[Path] = []
        try:
            sent = [self._part(part, files) for part in parts]
            reply = self._ask({"op": "turn", "parts": sent, "tokens": tokens}, self._turn_seconds)
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        resident = resident_bytes(self._resident_pid) if self._resident_pid else 0
        peak = int(reply["peak"]) if self.peak else 0
        self.peak = max(self.peak, peak)
        # a stage that came out as nothing was not told apart
        stages = {str(k): float(v) for k, v in reply["stages"].items() if float(v) > 0}
        return TurnTimes(
            float(reply["total"]),
            stages,
            int(reply["new_tokens"]),
            int(reply["generated"]),
            resident,
            computed=int(reply["computed"]),
            peak=peak,
        )

    def reset(self) -> None:
        self._ask({"op": "reset"}, OTHER_SECONDS)

    def close(self) -> None:
        """Let the worker end by itself; end it where it does not. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                self._say(process, {"op": "close"})
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                end_family(process.pid)
                process.wait()
            for thread in self._threads:
                thread.join(5)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    _close_quietly(stream)
        self._threads.clear()
        if self._pictures is not None:
            self._pictures.cleanup()
            self._pictures = None
        self._gone = ""

    # -- the process -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._errors.clear()
        self._answers = queue.Queue()
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=clean_environment(),
            )
        except OSError as e:
            raise BenchError(f"{self.name}: {self.command[0]} can't be run: {e.strerror or e}") from e
        self._process = process
        self._threads = [
            threading.Thread(target=self._read_answers, args=(process, self._answers), daemon=True),
            threading.Thread(target=self._read_errors, args=(process,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_answers(self, process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
        if process.stdout is not None:
            for line in process.stdout:
                answers.put(line)
        answers.put(None)

    def _read_errors(self, process: subprocess.Popen[str]) -> None:
        if process.stderr is not None:
            for line in process.stderr:
                if line.strip():
                    self._errors.append(line.strip())

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        if process is None:
            raise BenchError(f"{self.name} is out: {self._gone or 'it was not loaded'}")
        self._say(process, request)
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise self._out(f"no answer to {request['op']!r} within {seconds:g} s") from None
        if line is None:
            process.wait()
            self._threads[1].join(5)  # its last output
            raise self._out(f"its process ended with code {process.returncode}{self._last_words()}")
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._out(f"it answered {line.strip()[:200]!r}, which is no JSON") from None
        if not reply.get("ok"):
            kind, error = str(reply.get("kind", "failed")), str(reply.get("error", "it failed"))
            mend = self._mends.get(kind, "")
            raise BenchError(f"{self.name}: {error}{f'; {mend}' if mend else ''}")
        return reply

    def _say(self, process: subprocess.Popen[str], request: dict[str, Any]) -> None:
        if process.stdin is None:
            return
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it is gone: the end of its answers says so

    def _out(self, why: str) -> BenchError:
        """The worker can't be used any more: end it, and remember why."""
        if self._process is not None and self._process.poll() is None:
            end_family(self._process.pid)
        self.close()
        self._gone = why
        return BenchError(f"{self.name}: {why}")

    def _last_words(self) -> str:
        words = [line for line in self._errors if not line.startswith("File ")]
        return f": {' | '.join(words[-3:])[:500]}" if words else ""

    def _part(self, part: Part, files: list[Path]) -> dict[str, Any]:
        if not isinstance(part, Picture):
            return {"words": part.count, "seed": part.seed}
        if self._pictures is None:
            self._pictures = tempfile.TemporaryDirectory(prefix="gog-edge-bench-")
        path = Path(self._pictures.name) / f"{len(files)}.rgb"
        path.write_bytes(part.pixels.tobytes())
        files.append(path)
        height, width = part.pixels.shape[:2]
        return {"image": str(path), "width": width, "height": height}


def end_family(pid: int) -> None:
    """End a process and what it started, a server for example."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def _close_quietly(stream: Any) -> None:
    try:
        stream.close()
    except OSError:
        return  # what was left to write has no reader any more


def listening_process(host: str, port: int) -> int:
    """The process on this machine that listens on a port; 0 where it is another machine or may not be known."""
    import psutil

    if host not in ("localhost", "127.0.0.1", "::1") or not port:
        return 0
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return 0
    own = os.getpid()
    for connection in connections:
        # an address is a tuple of host and port, empty for unnamed sockets
        listens = connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:2] == (port,)
        if listens and connection.pid and connection.pid != own:
            return int(connection.pid)
    return 0
