"""One shell around any provider: time-out, retries, rate, concurrency, cache, circuit breaker.

Everything obeys the caller's deadline: a wait that would pass it is not begun. Only failures that may go away are
tried again (`RetryableError`: broken connections, 429, 5xx, time-outs of the provider's own).
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gog_edge.deadline import SYSTEM, Clock
from gog_edge.errors import SearchError, SearchTimeoutError
from gog_edge.search.base import BaseProvider, Deadline, ImageQuery, Page, SearchProvider
from gog_edge.search.cache import ResultCache, decode_hits, decode_page, encode_hits, encode_page
from gog_edge.search.web.http import RetryableError
from gog_edge.types import Hit

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

T = TypeVar("T")
log = logging.getLogger("gog_edge.search")
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds before the first retry; doubled each time, with full jitter
MAX_RETRY_AFTER = 60.0


@dataclass(frozen=True)
class CallLimits:
    """How a provider may be used.

    Args:
        timeout: seconds for one attempt.
        retries: further attempts after a failure that may go away.
        rate: requests per second (0: no limit); short bursts of up to one second's worth are fine.
        concurrency: attempts at once.
        failures: in a row, until the circuit opens and calls fail at once.
        cooldown: seconds until an open circuit lets one attempt through.
    """

    timeout: float = 10.0
    retries: int = 2
    rate: float = 0.0
    concurrency: int = 4
    failures: int = 5
    cooldown: float = 30.0

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.rate < 0 or self.concurrency < 1 or self.failures < 1:
            raise SearchError(
                "limits: timeout > 0, retries >= 0, rate >= 0, concurrency >= 1, failures >= 1 are needed"
            )


class Resilient(BaseProvider):
    """`inner` under `limits`, with an optional cache. Thread-safe.

    Args:
        identity: names the configuration in cache keys (no secrets).
        early: see `BaseProvider`.
        clock: of rates and circuits, which outlive a question; waiting is done in the question's own.
        rng: of jitter.
    """

    def __init__(
        self,
        inner: SearchProvider,
        limits: CallLimits | None = None,
        *,
        cache: ResultCache | None = None,
        identity: str = "",
        early: bool = True,
        clock: Clock = SYSTEM,
        rng: random.Random | None = None,
    ) -> None:
        self.inner = inner
        self.name, self.kinds, self.early = inner.name, inner.kinds, early
        self.limits = limits or CallLimits()
        self._cache, self._identity = cache, identity or inner.name
        self._rng = rng or random.Random()
        self._slots = threading.BoundedSemaphore(self.limits.concurrency)
        self._bucket = _Bucket(self.limits.rate, clock)
        self._breaker = _Breaker(self.limits, clock)

    def search_text(self, query: str, *, k: int, deadline: Deadline) -> list[Hit]:
        key = self._key("text", " ".join(query.split()), str(k))
        return self._through_cache(
            key, encode_hits, decode_hits, lambda limit: self.inner.search_text(query, k=k, deadline=limit), deadline
        )

    def search_image(self, query: ImageQuery, *, k: int, deadline: Deadline) -> list[Hit]:
        box = "" if query.region is None else ",".join(f"{v:.0f}" for v in query.region.as_tuple())
        key = self._key("image", query.frame.digest, box, query.label, str(k))
        return self._through_cache(
            key, encode_hits, decode_hits, lambda limit: self.inner.search_image(query, k=k, deadline=limit), deadline
        )

    def read_page(self, url: str, *, deadline: Deadline, goal: str = "") -> Page:
        key = self._key("page", url, goal)
        return self._through_cache(
            key, encode_page, decode_page, lambda limit: self.inner.read_page(url, deadline=limit, goal=goal), deadline
        )

    def read_image(self, url: str, *, deadline: Deadline) -> Frame:
        # Pictures lie on hosts of all kinds: a dead one is not worth a second attempt and says nothing about the
        # provider. They are not kept, either.
        return self.inner.read_image(url, deadline=deadline.within(self.limits.timeout))

    def close(self) -> None:
        self.inner.close()
        if self._cache is not None:
            self._cache.close()

    def _through_cache(
        self,
        key: str,
        encode: Callable[[T], str],
        decode: Callable[[str], T],
        attempt: Callable[[Deadline], T],
        deadline: Deadline,
    ) -> T:
        kept = None if self._cache is None else self._cache.get(key)
        if kept is not None:
            try:
                return decode(kept)
            except (ValueError, TypeError, AttributeError) as e:
                log.warning("%s: a cached result can't be used (%s); searching again", self.name, e)
        result = self._call(attempt, deadline)
        if self._cache is not None:
            self._cache.put(key, encode(result))
        return result

    def _call(self, attempt: Callable[[Deadline], T], deadline: Deadline) -> T:
        for number in range(self.limits.retries + 1):
            try:
                return self._attempt(attempt, deadline)
            except RetryableError as e:
                wait = self._wait_before_retry(number, e.retry_after)
                if number == self.limits.retries or wait >= deadline.remaining():
                    raise
                deadline.clock.event().wait(wait)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, attempt: Callable[[Deadline], T], deadline: Deadline) -> T:
        pause = self._bucket.reserve(deadline.remaining())
        if pause is None:
            raise SearchTimeoutError(f"{self.name}: its rate limit leaves no room before the deadline")
        if pause > 0:
            deadline.clock.event().wait(pause)
        if not self._slots.acquire(timeout=deadline.timeout(threading.TIMEOUT_MAX)):
            raise SearchTimeoutError(f"{self.name}: all {self.limits.concurrency} places were busy until the deadline")
        try:
            self._breaker.enter(self.name)
            return self._judge(attempt, deadline)
        finally:
            self._slots.release()

    def _judge(self, attempt: Callable[[Deadline], T], deadline: Deadline) -> T:
        """One attempt; its outcome moves the breaker. Whatever a provider raises leaves as a SearchError."""
        try:
            result = attempt(deadline.within(self.limits.timeout))
        except RetryableError as e:
            self._breaker.failed(str(e))
            raise
        except SearchTimeoutError as e:
            if deadline.expired:
                self._breaker.undecided()  # the caller's time ran out; that says nothing about the provider
                raise
            late = f"{self.name}: no answer within {self.limits.timeout:g} s"
            self._breaker.failed(late)
            raise RetryableError(late) from e
        except SearchError:
            self._breaker.worked()  # it answered, if only with a refusal
            raise
        except Exception as e:
            problem = f"{self.name}: {type(e).__name__}: {' '.join(str(e).split())[:200]}"
            self._breaker.failed(problem)
            raise SearchError(problem) from e
        except BaseException:
            self._breaker.undecided()
            raise
        self._breaker.worked()
        return result

    def _wait_before_retry(self, number: int, retry_after: float | None) -> float:
        if retry_after is not None:
            return min(max(retry_after, 0.0), MAX_RETRY_AFTER)
        return self._rng.uniform(0.0, min(FIRST_WAIT * 2.0**number, LONGEST_WAIT))

    def _key(self, *parts: str) -> str:
        text = json.dumps([self._identity, *parts], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _Bucket:
    """Token bucket: `rate` a second, at most one second's worth (at least one) at once."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate, self._clock = rate, clock
        self._size = max(1.0, rate)
        self._tokens, self._at = self._size, clock.now()
        self._lock = threading.Lock()

    def reserve(self, patience: float) -> float | None:
        """Seconds to wait for a token, or None (and none is taken) when that is longer than `patience`."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._clock.now()
            self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
            self._at = now
            wait = max(0.0, (1.0 - self._tokens) / self._rate)
            if wait > patience:
                return None
            self._tokens -= 1.0
            return wait


class _Breaker:
    """Closed, open, half open. Thread-safe."""

    def __init__(self, limits: CallLimits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._failures, self._reason = 0, ""
        self._opened: float | None = None
        self._trying = False

    def enter(self, name: str) -> None:
        """Go on, or raise SearchError while open; half open lets one attempt through."""
        with self._lock:
            if self._opened is None:
                return
            left = self._opened + self._limits.cooldown - self._clock.now()
            if left > 0 or self._trying:
                reason = self._reason.removeprefix(f"{name}: ")
                raise SearchError(
                    f"{name}: {reason} ({self._failures} failures in a row: not asked again for {max(left, 0):.0f} s)"
                )
            self._trying = True

    def worked(self) -> None:
        with self._lock:
            self._failures, self._opened, self._trying = 0, None, False

    def undecided(self) -> None:
        with self._lock:
            self._trying = False

    def failed(self, reason: str) -> None:
        """Count a failure; `reason`, one line, is what is told while the circuit is open."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            self._trying = False
            if self._opened is not None or self._failures >= self._limits.failures:
                self._opened = self._clock.now()
