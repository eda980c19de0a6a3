"""An append-only conversation at token level: text, images and what the policy wrote, with their KV cache.

Nothing is re-rendered, re-tokenised or re-encoded: appended tokens wait until the next `run`, which computes just
them. Going back (`rewind`) forgets tokens at the end. Positions are M-RoPE triples in prefill and in decoding alike,
and the delta between positions and tokens is restored with every rewind.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, Features, KvCache
from gog_edge.errors import ContextOverflowError, SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.decoder import PlacedImage
from gog_edge.runtime.feature_cache import FeatureKey
from gog_edge.runtime.model import Model
from gog_edge.runtime.positions import ImageSpan, Positions
from gog_edge.runtime.sequence import I32, SessionImage, Transcript, read_rows, shared
from gog_edge.runtime.telemetry import NO_TRACE, Trace, TracedImage
from gog_edge.runtime.tokenizer import EncodedPart
from gog_edge.runtime.vision import PixelLimits, VisionPlan
from gog_edge.types import Control, Region, RegisteredImage, Segment, Usage


@dataclass(frozen=True)
class Mark:
    """A place to come back to. Costs nothing; void once the conversation was cut before it."""

    length: int
    delta: int
    images: int
    cuts: int


class Session:
    """One conversation. Every method takes the session's lock, so a call is atomic; a turn of several calls is the
    caller's affair (hold `lock`)."""

    def __init__(self, model: Model, *, trace: Trace = NO_TRACE) -> None:
        self.model = model
        self.trace = trace
        self.lock = threading.RLock()
        self.transcript = Transcript(model.manifest.tokens)
        self._computed = 0
        self._cache: KvCache | None = None
        self._cuts: list[int] = []
        self._rows: F32 | None = None  # logits of the newest tokens; row 0 belongs to token `_rows_at`
        self._rows_at = -1
        self._draft: tuple[int, ...] = ()
        self._share = 0  # length of the prefix whose KV is to be kept once it is computed
        self._usage = Usage()
        self.encoded_early: set[FeatureKey] = set()  # crops that are encoded before they are appended

    # -- looking ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.transcript)

    @property
    def tokens(self) -> I32:
        """All token ids [n]; a view that is valid until the next append."""
        return self.transcript.ids

    @property
    def positions(self) -> Positions:
        """The tokens' M-RoPE positions."""
        return self.transcript.positions

    @property
    def computed(self) -> int:
        """How many tokens are in the KV cache."""
        return self._computed

    @property
    def images(self) -> tuple[RegisteredImage, ...]:
        """The registry's geometry, for dialects."""
        return tuple(i.geometry for i in self.transcript.images)

    @property
    def digests(self) -> list[str]:
        """Content of the registry's frames, in order."""
        return [i.digest for i in self.transcript.images]

    @property
    def room(self) -> int:
        """Tokens that can still be appended."""
        return self.model.max_context - len(self)

    @property
    def usage(self) -> Usage:
        """What was computed and saved since the session began."""
        return self._usage

    def image(self, index: int) -> SessionImage:
        """The registry's image `index`.

        Raises:
            SessionError: there is none.
        """
        return self.transcript.image(index)

    def frame(self, index: int) -> Frame:
        """The original frame that image `index` was cut from.

        Raises:
            SessionError: the session was loaded without its frames.
        """
        plan = self.image(index).plan
        if plan is None:
            digest = self.image(index).digest[:12]
            raise SessionError(f"image {index} has no pixels here: load the session with the frame of digest {digest}…")
        return plan.frame

    # -- appending -------------------------------------------------------------------------------------------

    def add_image(
        self,
        frame: Frame,
        region: Region | None = None,
        *,
        source: int | None = None,
        limits: PixelLimits | None = None,
    ) -> RegisteredImage:
        """Register an image (a crop of `frame` if `region` is given); `append` an `ImagePart` to show it.

        Args:
            source: registry index of the whole frame that a crop belongs to.
            limits: of the resized image.

        Raises:
            RegionError, ImageError: it can't be shown.
        """
        plan = self.model.vision.plan(frame, region, limits)
        with self.lock:
            index = len(self.transcript.images)
            image = SessionImage.planned(plan, index, index if source is None else source)
            self.transcript.images.append(image)
            self._trace_image(image)
            return image.geometry

    def _trace_image(self, image: SessionImage) -> None:
        plan = image.plan
        frame, cached = (plan.frame, self.model.vision.cache.peek(plan.key)) if plan is not None else (None, False)
        self.trace.image(TracedImage(image.geometry, frame, image.digest, image.tokens, cached))

    def append(self, segments: Sequence[Segment], *, reserve: int = 0, behind: int | None = None) -> int:
        """Append wording, outside text and images; returns the number of tokens. Nothing is computed yet.

        Args:
            reserve: tokens that must still fit afterwards (for the answer).
            behind: the length of the conversation that is appended to, where `anticipate` has written behind it: what
                it got right stays, with its KV, the rest is forgotten.

        Raises:
            ContextOverflowError: it does not fit; nothing was appended.
            SessionError: a segment names an image that was not registered.
        """
        with self.lock:
            parts = self.model.tokenizer.encode(segments)
            size = self.transcript.size(parts, self.transcript.images)
            start = len(self) if behind is None else behind
            self._check_room(size.tokens, reserve, size.shown, start)
            fresh = start == 0
            self._go_on(parts, start)
            self._usage += Usage(prompt_tokens=size.tokens, image_tokens=size.shown)
            if fresh:
                self._reuse_prefix(segments)
            return size.tokens

    def anticipate(self, one: Sequence[Segment], other: Sequence[Segment], behind: int, *, reserve: int = 0) -> int:
        """Write behind token `behind` what two ways of going on begin with, for `run` to compute ahead of time.

        The conversation proper still ends at `behind`: `append(…, behind=behind)` goes on with what was really said,
        `rewind` forgets it. Returns the number of tokens that wait to be computed; 0 where there is no room.

        Raises:
            SessionError: a segment names an image that was not registered.
        """
        with self.lock:
            parts = shared(self.model.tokenizer.encode(one), self.model.tokenizer.encode(other))
            size = self.transcript.size(parts, self.transcript.images)
            if behind + size.tokens + reserve > self.model.max_context:
                return 0
            self._go_on(parts, behind)
            return len(self) - self._computed

    def restart(self, plans: Sequence[VisionPlan], segments: Sequence[Segment], *, reserve: int = 0) -> int:
        """Begin another conversation, keeping the KV of what it has in common with this one.

        Tokens are compared one by one, images by content and size, so a second question about the same frame pays
        for its own words only, wherever its dialect puts the image. Returns the number of tokens that were kept.

        Args:
            plans: the new registry, in order (see `VisionEncoder.plan`).

        Raises:
            ContextOverflowError: it does not fit; the old conversation is as it was.
            SessionError: a segment names an image that is not in `plans`; the old conversation is as it was.
        """
        images = [SessionImage.planned(plan, index, index) for index, plan in enumerate(plans)]
        with self.lock:
            parts = self.model.tokenizer.encode(segments)
            size = self.transcript.size(parts, images)
            self._check_room(size.tokens - len(self), reserve, size.shown)
            kept, rest = self.transcript.common(parts, images)
            self.cut(kept)
            self.transcript.images = images
            for image in images:
                self._trace_image(image)
            shown = self._write(rest)
            self._usage += Usage(prompt_tokens=size.tokens - kept, reused_tokens=kept, image_tokens=shown)
            if kept == 0:
                self._reuse_prefix(segments)
            return kept

    def extend(self, ids: Iterable[int], *, forced: bool = False) -> None:
        """Append tokens that the policy wrote (or that its grammar forced).

        Raises:
            ContextOverflowError: they do not fit; nothing was appended.
        """
        new = list(ids)
        with self.lock:
            self._check_room(len(new), 0, 0)
            self.transcript.append_ids(new, written=True)
            self._draft = ()
            self._usage += Usage(forced_tokens=len(new)) if forced else Usage(generated_tokens=len(new))

    def _go_on(self, parts: Sequence[EncodedPart], start: int) -> None:
        """Let the conversation say `parts` from token `start` on; what says so already stays as it is."""
        kept, rest = self.transcript.common(parts, self.transcript.images, start)
        self.cut(kept)
        self._write(rest)

    def _write(self, parts: Sequence[EncodedPart]) -> int:
        """Add to the transcript; returns the tokens of images among them."""
        self._draft = ()
        return sum(self.transcript.append(part) for part in parts)

    def _check_room(self, count: int, reserve: int, image_tokens: int, start: int | None = None) -> None:
        limit, have = self.model.max_context, len(self) if start is None else start
        if have + count + reserve <= limit:
            return
        what = f"{count} tokens ({image_tokens} of images)" if image_tokens else f"{count} tokens"
        kept = f" and {reserve} kept for the answer" if reserve else ""
        raise ContextOverflowError(
            f"the conversation has {have} tokens; {what} more{kept} exceed the context of {limit}: "
            "use smaller images or fewer results, raise max_context, or rewind"
        )

    # -- computing -------------------------------------------------------------------------------------------

    def run(self, draft: Sequence[int] = (), budget: Budget = UNLIMITED) -> F32:
        """Compute what is appended and not computed yet; logits [1 + len(draft), V].

        Row 0 predicts the token after the conversation; row i the one after the first i tokens of `draft`, which
        are tried, not appended: `accept` appends the part of them that turned out right.

        Raises:
            SessionError: the session is empty.
            EngineError: the engine failed.
            CancelledError, DeadlineReached: the budget ended; what was computed so far stays.
        """
        with self.lock:
            length = len(self)
            if length == 0:
                raise SessionError("the session is empty: append a prompt before running it")
            if not draft and self._rows is not None and self._computed == length and self._rows_at == length - 1:
                return self._rows[:1]
            start = min(self._computed, length - 1)
            ids = np.concatenate([self.tokens[start:], np.asarray(draft, np.int32)])
            tail = np.arange(self.positions.next, self.positions.next + len(draft), dtype=np.int32)
            where = np.concatenate([self.positions.view(start, length), np.broadcast_to(tail, (3, len(draft)))], axis=1)
            logits = self._chunks(start, ids, where, 1 + len(draft), budget)
            self._rows, self._rows_at, self._draft = logits, length - 1, tuple(draft)
            return logits

    def accept(self, count: int) -> None:
        """Append the first `count` tokens left of the last run's draft; their KV is there already.

        Raises:
            SessionError: the last run had no such draft, or something was appended since.
        """
        with self.lock:
            if count > len(self._draft) or self._computed != len(self):
                raise SessionError(f"{count} draft tokens can't be accepted: the last run tried {len(self._draft)}")
            rows, draft = self._rows, self._draft
            self.transcript.append_ids(draft[:count], written=True)
            self._computed = len(self)
            self._usage += Usage(generated_tokens=count)
            if rows is not None:
                self._rows, self._rows_at = rows[count:], len(self) - 1
            self._draft = draft[count:]

    def encode_images(self, budget: Budget = UNLIMITED) -> None:
        """Run the vision tower for images that the next `run` will need (it would do so itself, in between).

        Raises:
            EngineError: the engine failed. CancelledError, DeadlineReached: the budget ended.
        """
        with self.lock:
            for span in self.positions.spans_between(self._computed, len(self)):
                self._features(span, budget)

    def _chunks(self, start: int, ids: I32, where: NDArray[np.int32], last_k: int, budget: Budget) -> F32:
        end, chunk = start + len(ids), max(self.model.chunk, last_k)
        written = np.ones(len(ids), np.bool_)  # a draft is what the policy may write
        written[: len(self) - start] = self.transcript.written[start:]
        if self._cache is None:
            self._cache = self.model.decoder.new_cache(end)
        at = start
        while True:
            stop = min(at + chunk, end)
            if 0 < end - stop < last_k:
                stop = end - last_k  # the rows that need logits stay together
            if at < self._share < stop:
                stop = self._share  # so that a stored prefix and a computed one are the same numbers
            read, fit = read_rows(written[at - start : stop - start])
            if self.model.rows_independent:
                stop = at + fit
            final = stop == end
            part = slice(at - start, stop - start)
            images = self._placed(at, stop, budget)
            stage = "decode" if stop - at <= last_k and final else "prefill"
            with self.trace.span(stage, tokens=stop - at, past=at):
                logits = self.model.decoder.forward(
                    self._cache,
                    at,
                    ids[part],
                    where[:, part],
                    images,
                    last_k=last_k if final else 1,
                    read=read,
                    budget=budget,
                )
            self._computed = min(stop, len(self))
            self._after_chunk(stop)
            if final:
                return logits
            at = stop

    def _placed(self, at: int, stop: int, budget: Budget) -> list[PlacedImage]:
        placed = []
        for span in self.positions.spans_between(at, stop):
            first, last = max(span.start, at), min(span.stop, stop)
            features = self._features(span, budget)
            placed.append(PlacedImage(first - at, first - span.start, last - first, features))
        return placed

    def _features(self, span: ImageSpan, budget: Budget) -> Features:
        image = self.transcript.images[span.image]
        if image.features is None:
            if image.plan is None:
                self.frame(span.image)  # raises, and says what is missing
                raise SessionError(f"image {span.image} can't be encoded")
            image.features, cached = self.model.vision.encode(image.plan, budget, self.trace)
            if image.plan.key in self.encoded_early:  # in the cache, but only because this question put it there
                self.encoded_early.discard(image.plan.key)
                cached = False
            self._usage += Usage(cached_images=1) if cached else Usage(encoded_images=1)
        return image.features

    def _after_chunk(self, stop: int) -> None:
        for span in self.positions.spans_between(0, stop):
            if span.stop <= stop and self.transcript.images[span.image].plan is not None:
                self.transcript.images[span.image].features = None  # in the KV cache now; the feature cache may keep it
        if self._share and stop >= self._share and self._cache is not None and self.model.prefixes is not None:
            self.model.prefixes.save(self.tokens[: self._share].copy(), self._cache.read(0, self._share))
            self._share = 0

    # -- the prefix that all conversations share -------------------------------------------------------------

    def _reuse_prefix(self, segments: Sequence[Segment]) -> None:
        """Take the KV of the leading wording from the cache, or note that it is to be kept."""
        store = self.model.prefixes
        leading: list[Segment] = []
        for segment in segments:
            if not isinstance(segment, Control):
                break
            leading.append(segment)
        if store is None or not leading:
            return
        parts = self.model.tokenizer.encode(leading)
        own = np.asarray(parts[0] if parts and isinstance(parts[0], list) else [], np.int32)
        count = min(len(own), len(self) - 1)
        differs = np.flatnonzero(own[:count] != self.tokens[:count])  # text after it may merge into its last token
        count = int(differs[0]) if differs.size else count
        ids = self.tokens[:count].copy()
        arrays = store.load(ids)
        if arrays is None:
            self._share = count
            return
        self._cache = self.model.decoder.new_cache(len(self))
        self._cache.write(0, arrays)
        self._computed = count
        self._usage += Usage(prompt_tokens=-count, reused_tokens=count)

    # -- going back ------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """The present end, to come back to."""
        with self.lock:
            return Mark(len(self), self.positions.delta, len(self.transcript.images), len(self._cuts))

    def rewind(self, mark: Mark) -> None:
        """Back to `mark`: tokens and images since then are forgotten, the KV before it is kept.

        Raises:
            SessionError: the conversation was cut before the mark since.
        """
        with self.lock:
            if mark.length > len(self) or any(cut < mark.length for cut in self._cuts[mark.cuts :]):
                raise SessionError(f"the mark at token {mark.length} is void: the conversation was cut before it")
            self.cut(mark.length)
            if self.positions.delta != mark.delta:
                raise SessionError(f"the mark at token {mark.length} has another position delta; start a new session")
            del self.transcript.images[max(mark.images, 0) :]

    def cut(self, length: int) -> None:
        """Forget every token from `length` on (not inside an image); registered images stay.

        Raises:
            SessionError: `length` is out of range or inside an image.
        """
        with self.lock:
            if length == len(self):
                self._draft = ()
                return
            self.transcript.truncate(length)
            self._computed = min(self._computed, length)
            self._share = self._share if self._share <= length else 0
            self._cuts.append(length)
            self._draft = ()
            if self._rows_at != length - 1:
                self._rows, self._rows_at = None, -1
