"""Runs areas in children, and goes on behind a trial that killed or silenced one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.faults.harness.core import Area
from tests.tools import ROOT

_STARTS = 40  # children of one area: one that kills each of its children has been heard
_MODULE = "tests.faults"


@dataclass
class Result:
    """What became of one area."""

    area: Area
    seed: int
    tried: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)  # (trial, what was wrong); -1: the preparation
    unavailable: str = ""
    seconds: float = 0.0

    def again(self, number: int) -> str:
        """The command that has the trial again."""
        trial = f" --trial {number}" if number >= 0 else " --trial 0"
        return f"python -m {_MODULE} --area {self.area.name} --seed {self.seed}{trial}"


def run(area: Area, seed: int, seconds: float, *, first: int = 0, limit: int = 1 << 40) -> Result:
    """Trials of one area for `seconds`, at most `limit`."""
    result, began = Result(area, seed), time.monotonic()
    until, end, done = time.time() + seconds, first + limit, False
    starts = 0
    while not done and first < end and (time.time() < until or not starts) and starts < _STARTS:
        starts += 1
        first, done = _one_child(result, first, end - first, until)
    result.seconds = time.monotonic() - began
    return result


def _one_child(result: Result, first: int, limit: int, until: float) -> tuple[int, bool]:
    """Run a child to its end; (the next trial, whether all is done)."""
    area, running, ready = result.area, -1, False
    with tempfile.TemporaryFile() as errors:
        reading, writing = os.pipe()
        arguments = [area.name, str(result.seed), str(first), str(limit), str(until), str(writing)]
        process = subprocess.Popen(
            [*_command(), "--child", *arguments],
            cwd=ROOT,
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        os.close(writing)
        said = ""
        try:
            for message in _messages(reading, area.longest_s):
                if message is None:
                    said = f"nothing for {area.longest_s:.0f} s: it hangs"
                    break
                ready = ready or "ready" in message
                if "begin" in message:
                    running = message["begin"]
                elif "end" in message:
                    _count(result, message)
                    first, running = message["end"] + 1, -1
                elif "unavailable" in message:
                    result.unavailable = message["unavailable"]
                elif "done" in message:
                    return first, True
        finally:
            os.close(reading)
            _end(process)
        code = process.returncode
        if not said:
            signalled = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            said = f"the process ended: {signalled}"
        errors.seek(0)
        tail = errors.read()[-1500:].decode("utf-8", "replace").strip().splitlines()[-1:]
        result.failures.append((running, " / ".join([said, *tail])))
        if running >= 0:
            result.tried += 1
            return running + 1, False
        return first, not ready  # what can't be prepared is not tried again


def _command() -> list[str]:
    return [sys.executable, "-m", _MODULE]


def _count(result: Result, message: dict[str, Any]) -> None:
    result.tried += 1
    if "wrong" in message:
        result.failures.append((message["end"], message["wrong"]))
    else:
        result.ended[message["as"]] += 1


def _messages(handle: int, patience: float) -> Iterator[dict[str, Any] | None]:
    """What a child reports; None where it says nothing for `patience` seconds."""
    rest = b""
    while True:
        if not select.select([handle], [], [], patience)[0]:
            yield None
            return
        data = os.read(handle, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The child and what it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
