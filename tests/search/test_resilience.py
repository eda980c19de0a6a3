"""Retries, rates, concurrency, circuit breaker, cache; with a clock of their own, so nothing really waits."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.image.frame import Frame
from gog_edge.search.base import BaseProvider, Deadline, ImageQuery, Page
from gog_edge.search.cache import ResultCache
from gog_edge.search.resilience import Limits, Resilient
from gog_edge.search.web.http import RetryableError
from gog_edge.types import Hit, Region

NEVER = Deadline.never()


class Clock:
    """See `gog_edge.deadline.Clock`: time passes when somebody waits."""

    def __init__(self) -> None:
        self.at = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    def event(self) -> Clock:
        return self

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.slept.append(timeout)
        self.at += timeout
        return False


class Scripted(BaseProvider):
    """Does what the script says, then succeeds."""

    name = "scripted"
    kinds = frozenset({"text", "image", "page"})

    def __init__(self, *script: Exception | Callable[[Deadline], None]) -> None:
        self.script, self.calls = list(script), 0

    def _step(self, deadline: Deadline) -> None:
        self.calls += 1
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            step(deadline)

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        self._step(deadline)
        return [Hit(f"{query} {k}", "text", score=0.5)]

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        self._step(deadline)
        return [Hit("picture", "text")]

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        self._step(deadline)
        return Page(url, "t", goal, True)


def shell(inner: Scripted, clock: Clock | None = None, cache: ResultCache | None = None, **limits: float) -> Resilient:
    clock = clock or Clock()
    made = Limits(**limits)  # type: ignore[arg-type]
    return Resilient(inner, made, cache=cache, clock=clock, rng=random.Random(0))  # type: ignore[arg-type]


def text(provider: Resilient, clock: Clock | None = None, seconds: float | None = None) -> list[Hit]:
    """`seconds`: until the deadline; of the machine's clock without another one."""
    deadline = Deadline.after(seconds, clock) if clock else Deadline.after(seconds)  # type: ignore[arg-type]
    return provider.search_text("q", k=1, deadline=deadline)


def test_failures_that_may_go_away_are_tried_again_with_jitter() -> None:
    clock, inner = Clock(), Scripted(RetryableError("a"), RetryableError("b"))
    assert text(shell(inner, clock), clock)[0].title == "q 1"
    assert inner.calls == 3
    assert 0 <= clock.slept[0] <= 0.25 and 0 <= clock.slept[1] <= 0.5
    assert clock.slept[0] != clock.slept[1]


def test_retry_after_is_honoured_and_bounded() -> None:
    clock = Clock()
    text(shell(Scripted(RetryableError("429", 7.0), RetryableError("429", 1e9)), clock), clock)
    assert clock.slept == [7.0, 60.0]


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    clock, inner = Clock(), Scripted(RetryableError("429", 50.0))
    with pytest.raises(RetryableError):
        text(shell(inner, clock), clock, 5)
    assert (clock.slept, inner.calls) == ([], 1)


def test_refusals_are_not_tried_again() -> None:
    inner = Scripted(SearchError("HTTP 401"))
    with pytest.raises(SearchError, match="401"):
        text(shell(inner))
    assert inner.calls == 1


def test_whatever_a_provider_raises_is_a_search_error() -> None:
    with pytest.raises(SearchError, match="scripted: ZeroDivisionError: two lines"):
        text(shell(Scripted(ZeroDivisionError("two\nlines"))))


def test_its_own_timeout_is_tried_again_the_callers_is_not() -> None:
    def hang(deadline: Deadline) -> None:
        time.sleep(deadline.timeout(1.0) or 0)
        deadline.check("hang")

    inner = Scripted(hang, hang)
    with pytest.raises(RetryableError, match=r"within 0\.05 s"):
        text(shell(inner, timeout=0.05, retries=1))
    assert inner.calls == 2
    inner = Scripted(hang, hang)
    with pytest.raises(SearchTimeoutError):
        text(shell(inner, timeout=5.0), seconds=0.05)
    assert inner.calls == 1


def test_the_circuit_opens_fails_fast_and_closes_again() -> None:
    clock = Clock()
    inner = Scripted(*[RetryableError("scripted: HTTP 503")] * 4)
    provider = shell(inner, clock, retries=0, failures=3, cooldown=30)
    for _ in range(3):
        with pytest.raises(RetryableError):
            text(provider)
    with pytest.raises(SearchError, match=r"^scripted: HTTP 503 \(3 failures in a row: not asked again for 30 s\)$"):
        text(provider)
    assert inner.calls == 3
    clock.at += 31
    with pytest.raises(RetryableError):  # half open: one attempt, which fails
        text(provider)
    with pytest.raises(SearchError, match="not asked again"):
        text(provider)
    clock.at += 31
    assert text(provider)
    assert text(provider)
    assert inner.calls == 6


def test_the_callers_deadline_does_not_open_the_circuit() -> None:
    def late(deadline: Deadline) -> None:
        time.sleep(0.02)
        deadline.check("late")

    inner = Scripted(*[late] * 5)
    provider = shell(inner, failures=2)
    for _ in range(5):
        with pytest.raises(SearchTimeoutError):
            text(provider, seconds=0.01)
    assert text(provider)


def test_the_rate_is_kept() -> None:
    clock = Clock()
    provider = shell(Scripted(), clock, rate=2.0)
    for _ in range(6):
        text(provider, clock)
    assert clock.at == pytest.approx(102.0)
    with pytest.raises(SearchTimeoutError, match="rate limit"):
        text(provider, clock, 0.1)


def test_concurrency_is_bounded() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(deadline: Deadline) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    provider = Resilient(Scripted(*[work] * 8), Limits(concurrency=2))
    threads = [threading.Thread(target=text, args=(provider,)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most == 2
    begun, go_on = threading.Event(), threading.Event()

    def hold(deadline: Deadline) -> None:
        begun.set()
        go_on.wait(20)

    blocked = Resilient(Scripted(hold), Limits(concurrency=1))
    thread = threading.Thread(target=text, args=(blocked,))
    thread.start()
    assert begun.wait(20)
    with pytest.raises(SearchTimeoutError, match="busy"):
        text(blocked, seconds=0.05)
    go_on.set()
    thread.join()


def test_the_cache_keys_what_matters_and_expires(tmp_path: Path) -> None:
    now = [1000.0]
    cache = ResultCache(tmp_path / "c" / "s.db", 60, clock=lambda: now[0])
    inner = Scripted()
    provider = shell(inner, cache=cache)
    frame = Frame.open(np.zeros((9, 9, 3), np.uint8))
    other = Frame.open(np.ones((9, 9, 3), np.uint8))
    for _ in range(2):
        provider.search_text("a", k=1, deadline=NEVER)
        provider.search_text("a", k=2, deadline=NEVER)
        provider.search_image(ImageQuery(frame), k=1, deadline=NEVER)
        provider.search_image(ImageQuery(other), k=1, deadline=NEVER)
        provider.search_image(ImageQuery(frame, Region(0, 0, 5, 5)), k=1, deadline=NEVER)
        provider.search_image(ImageQuery(frame, label="l"), k=1, deadline=NEVER)
        page = provider.read_page("u", deadline=NEVER, goal="g")
    assert inner.calls == 7
    assert page == Page("u", "t", "g", True)
    assert provider.search_text("a", k=1, deadline=NEVER) == [Hit("a 1", "text", score=0.5)]
    now[0] += 61
    provider.search_text("a", k=1, deadline=NEVER)
    assert inner.calls == 8


def test_failures_are_not_cached_and_a_broken_cache_does_without(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    inner = Scripted(SearchError("no"))
    provider = shell(inner, cache=ResultCache(path, 60))
    with pytest.raises(SearchError):
        text(provider)
    assert text(provider)
    with sqlite3.connect(path) as c:
        c.execute("UPDATE results SET value = '{broken'")
    assert text(provider)[0].title == "q 1"
    assert inner.calls == 3
    provider.close()
    path.write_bytes(b"garbage" * 1000)
    assert text(provider)[0].title == "q 1"
    assert text(shell(Scripted(), cache=ResultCache(tmp_path / "s.db" / "below a file", 60)))


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "s.db", 60, max_entries=5)
    for i in range(257):
        cache.put(f"k{i}", "v")
    with sqlite3.connect(cache.path) as c:
        assert c.execute("SELECT count(*) FROM results").fetchone()[0] == 5


def test_senseless_limits_are_refused() -> None:
    for wrong in ({"timeout": 0}, {"retries": -1}, {"concurrency": 0}, {"rate": -1}):
        with pytest.raises(SearchError):
            Limits(**wrong)  # type: ignore[arg-type]
