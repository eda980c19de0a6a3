"""llama.cpp with a server of its own: `llama-server` on a folder of GGUF files, started here and ended with the worker.

It is used like any OpenAI-compatible server. Loading is clocked from its start, and its memory is its own process's.
Its `timings` count the encoding of pictures as part of the prompt; the times in its log (`-lv 4 --log-timestamps`) tell
both apart: from "encoding mtmd batch" to "decoding image batch 1". Without `options["threads"]` it gets one thread a
processor. The prompt cache beside its slot is off (`--cache-ram 0`): a conversation is kept in the slot.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .run_openai import OpenAi
from .wire import Image, Part, TurnTimes, WorkerError, clock, folder, serve

CONTEXT = 20480
START_SECONDS = 600.0
_STAMP = re.compile(r"(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) ")  # minutes, seconds, milli- and microseconds
_BEGIN, _END = "encoding mtmd batch", "decoding image batch 1/"


class LlamaCpp(OpenAi):
    """One server, one slot."""

    def __init__(self) -> None:
        super().__init__()
        self.server: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        atexit.register(self.close)

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        self.close()
        program = options.get("program") or shutil.which("llama-server")
        if not program:
            raise WorkerError("package", "llama-server is not on the PATH")
        language, towers = gguf_files(folder(model))
        threads = int(options.get("threads") or os.cpu_count() or 1)
        port = _free_port()
        command = [str(program), "-m", str(language), "--alias", language.name, "-c", str(CONTEXT), "-np", "1"]
        command += ["-t", str(threads), "-tb", str(threads), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--cache-ram", "0", "-lv", "4", "--log-timestamps", *(("--mmproj", str(towers)) if towers else ())]
        start = clock()
        self._start(command)
        self._wait(f"http://127.0.0.1:{port}/v1")
        found = super().load(f"http://127.0.0.1:{port}/v1", options)
        about = f"{found['about']}{f', {towers.name}' if towers else ''}, {threads} threads"
        return {"seconds": clock() - start, "about": about}

    def turn(self, parts: Sequence[Part], tokens: int) -> TurnTimes:
        before = len(self.lines)
        turn = super().turn(parts, tokens)
        encoded = encoding_seconds(self.lines[before:])
        if encoded and any(isinstance(p, Image) for p in parts):
            turn.stages = {"encode": encoded, "prefill": self.prompt_seconds - encoded, **turn.stages}
        return turn

    def close(self) -> None:
        super().close()
        server, self.server = self.server, None
        if server is not None:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def peak_bytes(self) -> int:
        """The server's high-water mark; 0 where the system does not tell that of another process."""
        if self.server is None or not sys.platform.startswith("linux"):
            return 0
        status = Path(f"/proc/{self.server.pid}/status").read_text("ascii")
        found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        return int(found.group(1)) * 1024 if found else 0

    def _start(self, command: list[str]) -> None:
        self.lines.clear()
        try:
            self.server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as e:
            raise WorkerError("package", f"{command[0]} can't be run: {e.strerror or e}") from e
        threading.Thread(target=self._read, args=(self.server,), daemon=True).start()

    def _read(self, server: subprocess.Popen[str]) -> None:
        if server.stderr is not None:
            for line in server.stderr:
                self.lines.append(line.strip())

    def _wait(self, address: str) -> None:
        """Until the server answers, which it does once its model is loaded."""
        end = clock() + START_SECONDS
        while clock() < end:
            if self.server is None or self.server.poll() is not None:
                words = [line for line in self.lines if line][-2:]
                raise WorkerError("failed", f"llama-server ended while it loaded: {' | '.join(words)[:400]}")
            if self.ready(address):
                return
            time.sleep(0.02)
        raise WorkerError("failed", f"llama-server was not ready after {START_SECONDS:g} s")


def gguf_files(path: Path) -> tuple[Path, Path | None]:
    """(the language model, the vision tower or None) of a folder; of several precisions the smallest."""
    found = sorted(path.glob("*.gguf"), key=lambda file: file.stat().st_size)
    towers = [file for file in found if file.name.startswith("mmproj")]
    models = [file for file in found if file not in towers]
    if not models:
        raise WorkerError("model", f"{path} holds no GGUF file of a language model")
    return models[0], towers[0] if towers else None


def encoding_seconds(lines: Sequence[str]) -> float:
    """Seconds that the server's log gives for encoding pictures; 0 where it does not tell."""
    total, begun = 0.0, None
    for line in lines:
        stamp = _STAMP.match(line)
        if stamp is None:
            continue
        minutes, seconds, milli, micro = map(int, stamp.groups())
        at = minutes * 60 + seconds + milli / 1e3 + micro / 1e6
        if _BEGIN in line:
            begun = at
        elif _END in line and begun is not None:
            total, begun = total + at - begun, None
    return total


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Serve."""
    worker = LlamaCpp()
    serve(worker, worker.peak_bytes)
