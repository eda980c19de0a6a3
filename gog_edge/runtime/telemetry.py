"""What a question did and when: spans per stage, tokens per step, images, actions, observations; JSON on demand.

Recording is a list append per event, cheap enough to be always on. Nothing secret can get in: values that
look like keys are blanked when the trace is exported, and addresses lose their credentials.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gog_edge.serde import encode
from gog_edge.types import Answer, RegisteredImage, Step

if TYPE_CHECKING:
    from gog_edge.image.frame import Frame

STAGES = ("decode_image", "crop", "encode", "prefill", "decode", "grammar", "search", "wait", "parse", "save", "load")


@dataclass(frozen=True)
class Span:
    """One piece of work. Times are seconds since the trace began; `thread` tells parallel work apart."""

    stage: str
    start: float
    end: float
    step: int
    thread: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class TokenRecord:
    """Text that came into being, with its tokens: one of the policy, or several that the grammar forced. `at`: seconds
    since the trace began."""

    step: int
    at: float
    text: str
    ids: tuple[int, ...]
    forced: bool = False
    guessed: bool = False  # came out of a verified guess, without a run of its own


@dataclass(frozen=True)
class TracedImage:
    """An image of the session's registry and where its pixels are."""

    geometry: RegisteredImage
    frame: Frame | None
    digest: str
    tokens: int
    from_cache: bool = False


class Trace:
    """Record of one question. Appending is thread-safe (list appends); reading is meant for after the end."""

    def __init__(self, question: str = "") -> None:
        self.question = question
        self.started_at = time.time()
        self._zero = time.perf_counter()
        self.spans: list[Span] = []
        self.tokens: list[TokenRecord] = []
        self.images: list[TracedImage] = []
        self.steps: list[Step] = []
        self.notes: list[tuple[float, str]] = []
        self.meta: dict[str, Any] = {}
        self.answer: Answer | None = None
        self.step = 0

    def now(self) -> float:
        """Seconds since the trace began."""
        return time.perf_counter() - self._zero

    def span(self, stage: str, **fields: Any) -> AbstractContextManager[dict[str, Any]]:
        """Time a piece of work; the yielded dict takes more fields. Recorded when it fails, too (`error` set)."""
        return _Timed(self, stage, fields)

    def token(self, text: str, ids: tuple[int, ...], *, forced: bool = False, guessed: bool = False) -> TokenRecord:
        """Tokens that the policy (or the grammar) wrote."""
        record = TokenRecord(self.step, time.perf_counter() - self._zero, text, ids, forced, guessed)
        self.tokens.append(record)
        return record

    def image(self, image: TracedImage) -> None:
        """An image joined the registry."""
        self.images.append(image)

    def note(self, text: str) -> None:
        """Something worth telling: a limit that was met, an observation that was shortened."""
        self.notes.append((self.now(), text))

    def seconds_by_stage(self) -> dict[str, float]:
        """Sum of span lengths per stage (parallel work counts twice)."""
        totals: dict[str, float] = {}
        for span in self.spans:
            totals[span.stage] = totals.get(span.stage, 0.0) + span.seconds
        return totals

    def thumbnail(self, index: int, side: int = 512) -> bytes | None:
        """JPEG of the registry image `index`, at most `side` pixels a side; None when its pixels are gone."""
        found = next((i for i in self.images if i.geometry.index == index), None)
        if found is None or found.frame is None:
            return None
        from io import BytesIO

        from gog_edge.crop import crop_image
        from gog_edge.types import Region

        frame, view = found.frame, found.geometry.region
        box = view or Region(0.0, 0.0, float(frame.width), float(frame.height))
        scale = min(1.0, side / max(box.width, box.height))
        size = (max(1, round(box.height * scale)), max(1, round(box.width * scale)))
        from PIL import Image

        out = BytesIO()
        Image.fromarray(crop_image(frame, view, size)).save(out, "JPEG", quality=85)
        return out.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`, without pixels and without secrets."""
        data = {
            "format": "gog-edge-trace",
            "version": 1,
            "question": self.question,
            "started_at": self.started_at,
            "seconds": self.now() if self.answer is None else self.answer.seconds,
            "meta": self.meta,
            "stages": self.seconds_by_stage(),
            "spans": [encode(s) for s in self.spans],
            "tokens": [encode(t) for t in self.tokens],
            "images": [
                {"geometry": encode(i.geometry), "digest": i.digest, "tokens": i.tokens, "from_cache": i.from_cache}
                for i in self.images
            ],
            "steps": [encode(s) for s in self.steps],
            "notes": [{"at": at, "text": text} for at, text in self.notes],
            "answer": encode(self.answer) if self.answer is not None else None,
        }
        secrets = _secrets()
        return {k: _clean(v, secrets) for k, v in data.items()}


class _Timed:
    """A piece of work that is being timed."""

    __slots__ = ("_fields", "_stage", "_start", "_trace")

    def __init__(self, trace: Trace, stage: str, fields: dict[str, Any]) -> None:
        self._trace, self._stage, self._fields = trace, stage, fields

    def __enter__(self) -> dict[str, Any]:
        self._start = time.perf_counter()
        return self._fields

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end, own = time.perf_counter(), self._trace
        if kind is not None:
            self._fields["error"] = kind.__name__
        zero, thread = own._zero, threading.current_thread().name
        own.spans.append(Span(self._stage, self._start - zero, end - zero, own.step, thread, self._fields))


def counted(number: int, one: str, many: str = "") -> str:
    """'1 image', '2 images'; `many` where the plural is irregular."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class _NoTrace(Trace):
    """Records nothing: for work that belongs to no question."""

    def span(self, stage: str, **fields: Any) -> AbstractContextManager[dict[str, Any]]:
        return contextlib.nullcontext(fields)

    def token(self, text: str, ids: tuple[int, ...], *, forced: bool = False, guessed: bool = False) -> TokenRecord:
        return TokenRecord(0, 0.0, text, ids, forced, guessed)

    def image(self, image: TracedImage) -> None:
        return

    def note(self, text: str) -> None:
        return


NO_TRACE: Trace = _NoTrace()

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_QUERY = re.compile(r"(?i)([?&;](?:[a-z_\-]*(?:key|token|secret|signature|password|auth)[a-z_\-]*)=)[^&\s#\"']+")
_USERINFO = re.compile(r"(?i)(\b[a-z][a-z0-9+.\-]*://)[^/\s@\"']+@")
_BLANK = "[removed]"


def _secrets() -> tuple[str, ...]:
    """Values of environment variables that are named like secrets (8 characters or more: shorter ones are words)."""
    return tuple(v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8)


def redact(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """`text` without credentials: secrets of the environment, key parameters and user names of addresses."""
    for secret in _secrets() if secrets is None else secrets:
        text = text.replace(secret, _BLANK)
    return _USERINFO.sub(rf"\1{_BLANK}@", _QUERY.sub(rf"\1{_BLANK}", text))


def _clean(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, Mapping):
        return {str(k): _clean(v, secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v, secrets) for v in value]
    return value if isinstance(value, (int, float, bool)) or value is None else str(value)
