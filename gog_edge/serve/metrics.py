"""What the service counts, as text that Prometheus reads (exposition format 0.0.4).

Counters only grow, from the start of the process on. Seconds are wall time.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

from gog_edge.types import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = {
    "prompt": "prompt_tokens",
    "reused": "reused_tokens",
    "image": "image_tokens",
    "generated": "generated_tokens",
}

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts of values up to each of `BOUNDS`, and their sum."""

    def __init__(self) -> None:
        self._counts, self._sum = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, value: float) -> None:
        """Count `value`."""
        self._counts[bisect_left(BOUNDS, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, Labels, float]]:
        """(suffix, labels, value) of each line."""
        total = 0
        for bound, count in zip((*BOUNDS, float("inf")), self._counts):
            total += count
            yield "_bucket", (("le", "+Inf" if bound == float("inf") else f"{bound:g}"),), total
        yield "_sum", (), self._sum
        yield "_count", (), total


class Metrics:
    """Counted from several threads. `version`, `bundle`: what runs, as labels of `gog_edge_info`."""

    def __init__(self, version: str, bundle: str) -> None:
        self._info: Labels = (("version", version), ("bundle", bundle))
        self._lock = threading.Lock()
        self._questions: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter(dict.fromkeys(_TOKENS, 0))
        self._replies: Counter[tuple[str, str]] = Counter()
        self._running, self._waiting = Histogram(), Histogram()

    def question(self, outcome: str, waited: float, seconds: float | None, usage: Usage | None) -> None:
        """A question has ended. `seconds`: that it ran; None if it never did. `usage`: None if it had no answer."""
        with self._lock:
            self._questions[outcome] += 1
            self._waiting.add(waited)
            if seconds is not None:
                self._running.add(seconds)
            if usage is not None:
                self._tokens.update({kind: getattr(usage, name) for kind, name in _TOKENS.items()})

    def reply(self, path: str, status: int) -> None:
        """A reply was sent. `path`: one of a few, never what a client made up."""
        with self._lock:
            self._replies[path, str(status)] += 1

    def text(self, running: int, waiting: int) -> str:
        """The page. `running`, `waiting`: questions at this moment."""
        with self._lock:
            lines = [
                *_family("gog_edge_info", "gauge", "What runs here.", [("", self._info, 1)]),
                *_family(
                    "gog_edge_questions_total",
                    "counter",
                    "Questions that have ended, by how.",
                    [("", (("outcome", outcome),), n) for outcome, n in sorted(self._questions.items())],
                ),
                *_family("gog_edge_question_seconds", "histogram", "Time that questions ran.", self._running.samples()),
                *_family("gog_edge_queue_seconds", "histogram", "Time that questions waited.", self._waiting.samples()),
                *_family(
                    "gog_edge_tokens_total",
                    "counter",
                    "Tokens of answered questions: read, not read again, of pictures (part of those), written.",
                    [("", (("kind", kind),), n) for kind, n in sorted(self._tokens.items())],
                ),
                *_family("gog_edge_questions_running", "gauge", "Questions that run now.", [("", (), running)]),
                *_family("gog_edge_questions_waiting", "gauge", "Questions that wait now.", [("", (), waiting)]),
                *_family(
                    "gog_edge_http_replies_total",
                    "counter",
                    "HTTP replies, by path and status.",
                    [("", (("path", path), ("status", code)), n) for (path, code), n in sorted(self._replies.items())],
                ),
            ]
        return "\n".join([*lines, *_process()]) + "\n"


def _process() -> Iterator[str]:
    import psutil

    process = psutil.Process()
    with process.oneshot():
        memory, times = process.memory_info().rss, process.cpu_times()
    yield from _family("process_resident_memory_bytes", "gauge", "Resident memory.", [("", (), memory)])
    used = times.user + times.system
    yield from _family("process_cpu_seconds_total", "counter", "Processor time.", [("", (), used)])


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, Labels, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for suffix, labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        yield f"{name}{suffix}{{{inside}}} {value!r}" if labels else f"{name}{suffix} {value!r}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
