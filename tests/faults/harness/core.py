"""What an area is, and how its trials run in a process of their own.

A trial is a number; with the area's name and the seed it decides everything, so that a failure can be had again:

    python -m tests.faults --area NAME --seed S --trial N

Trials run in a child process, which writes a line of JSON before and after each one: whatever ends the child (SIGSEGV,
SIGBUS, abort) or keeps it silent is a failure of the trial that had begun, and not the end of the harness.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gog_edge.errors import GogEdgeError

Attempt = Callable[[random.Random, int], str]
"""Trial `n` with its random numbers; returns in what it ended, in a word or two, for the counts."""


class Wrong(Exception):
    """A trial ended in what is not promised."""


class Exhausted(Exception):
    """An area has no trial of this number."""


class Unavailable(Exception):
    """What an area needs is not on this machine."""


@dataclass(frozen=True)
class Area:
    """One kind of damage.

    Args:
        promise: what every trial ends in.
        open: gets a folder of its own and a seed, prepares, gives the attempt; whatever it raises is a failure.
        share: of the time of a run.
        longest_s: a trial or the preparation that takes longer hangs.
    """

    name: str
    promise: str
    open: Callable[[Path, int], AbstractContextManager[Attempt]]
    share: float = 1.0
    longest_s: float = 300.0


def randomness(area: str, seed: int, number: int) -> random.Random:
    """The random numbers of one trial."""
    return random.Random(f"{area}:{seed}:{number}")


def one_line(error: GogEdgeError) -> str:
    """ "refused", if the message is what users may get.

    Raises:
        Wrong: it is empty, several lines, or too long to be read.
    """
    text = str(error)
    if not text.strip() or "\n" in text or len(text) > 1500:
        raise Wrong(f"{type(error).__name__} with a message of {len(text)} characters: {text[:300]!r}")
    return "refused"


def work(area: Area, seed: int, first: int, limit: int, until: float, report: Callable[[dict[str, Any]], None]) -> None:
    """Trials `first`, `first` + 1, … in this process, at most `limit`, none begun after `until` (time.time()).

    Each is reported as {"begin": n} and {"end": n, "as": word} or {"end": n, "wrong": text}; at last {"done": n}.
    """
    with tempfile.TemporaryDirectory(prefix="gog-faults-") as folder:
        try:
            with area.open(Path(folder), seed) as attempt:
                report({"ready": True})
                number = first
                while number < first + limit and time.time() < until:
                    report({"begin": number})
                    try:
                        report({"end": number, **_tried(attempt, randomness(area.name, seed, number), number)})
                    except Exhausted:
                        break
                    number += 1
        except Unavailable as e:
            report({"unavailable": str(e)})
        report({"done": True})


def _tried(attempt: Attempt, numbers: random.Random, number: int) -> dict[str, str]:
    try:
        return {"as": attempt(numbers, number)}
    except Exhausted:
        raise
    except Wrong as e:
        return {"wrong": str(e)}
    except GogEdgeError as e:
        try:
            return {"as": one_line(e)}
        except Wrong as wrong:
            return {"wrong": str(wrong)}
    except BaseException as e:  # whatever else comes out is what the harness looks for
        where = traceback.extract_tb(e.__traceback__)
        ours = next((f for f in reversed(where) if "gog_edge" in f.filename), where[-1])
        if os.environ.get("GOG_FAULTS_TRACE"):
            traceback.print_exc()
        return {"wrong": f"{type(e).__name__}: {str(e)[:300]} ({Path(ours.filename).name}:{ours.lineno})"}


def child(area: Area, arguments: list[str]) -> None:
    """The entry of a child: seed, first, limit, until, and the descriptor to report to."""
    seed, first, limit, until, handle = arguments

    def report(message: dict[str, Any]) -> None:
        os.write(int(handle), json.dumps(message).encode() + b"\n")

    work(area, int(seed), int(first), int(limit), float(until), report)
    sys.stdout.flush()
    os._exit(0)  # threads of servers and pools are nobody's trial
