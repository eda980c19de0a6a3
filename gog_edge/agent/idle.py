"""Sessions that wait for the next question about their pictures, with the KV cache of the last one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gog_edge.runtime.session import Session


class IdleSessions:
    """At most `most` sessions, the one that was used last at the end. From any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: list[Session] = []
        self._lock = threading.Lock()

    def take(self, digests: Sequence[str]) -> Session | None:
        """The session that shares most of these pictures from the first on; of several the last one used. If none has
        the first, the one that waits longest, where there is no room for one more; its wording may still serve."""
        with self._lock:
            session = max(reversed(self._sessions), key=lambda s: alike(s.digests, digests), default=None)
            if session is not None and not alike(session.digests, digests):
                session = self._sessions[0] if len(self._sessions) >= self._most else None
            if session is not None:
                self._sessions.remove(session)
        return session

    def put(self, session: Session) -> None:
        """Keep it; the one that waits longest makes room."""
        with self._lock:
            self._sessions.append(session)
            del self._sessions[: max(len(self._sessions) - self._most, 0)]

    @contextmanager
    def side_by_side(self, count: int) -> Iterator[None]:
        """Keep as many as questions run side by side meanwhile, so that each finds its own again."""
        with self._lock:
            fewer, self._most = self._most, max(self._most, count) if self._most else 0
        try:
            yield
        finally:
            with self._lock:
                self._most = min(self._most, fewer)
                del self._sessions[: max(len(self._sessions) - self._most, 0)]

    def close(self) -> None:
        """Forget them, and keep none from now on."""
        with self._lock:
            self._most = 0
            self._sessions.clear()


def alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items both begin with."""
    return next((at for at, (x, y) in enumerate(zip(one, other)) if x != y), min(len(one), len(other)))
