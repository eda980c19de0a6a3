"""An append-only conversation at token level: text, images and what the policy wrote, with their KV cache.

Nothing is re-rendered, re-tokenised or re-encoded: appended tokens wait until the next `run`, which computes just
them. Going back (`rewind`) forgets tokens at the end. Positions are M-RoPE triples in prefill and in decoding alike,
and the delta between positions and tokens is restored with every rewind.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.base import F32, Features, KvCache
from gog_edge.errors import SessionError
from gog_edge.image.frame import Frame
from gog_edge.runtime.decoder import PlacedImage
from gog_edge.runtime.feature_cache import FeatureKey
from gog_edge.runtime.model import Model
from gog_edge.runtime.sequence import (
    I32,
    Flags,
    ImageSpan,
    Mark,
    SessionImage,
    Size,
    TokenSequence,
    read_rows,
    run_end,
    shared,
)
from gog_edge.runtime.shared_prefix import SharedPrefix
from gog_edge.runtime.snapshots import Snapshots, forget
from gog_edge.runtime.telemetry import NO_TRACE, Trace, TracedImage
from gog_edge.runtime.tokenizer import EncodedPart
from gog_edge.runtime.vision import VisionPlan
from gog_edge.types import PixelLimits, Region, RegisteredImage, Segment, Usage

_MANY = 1024  # rows whose memory is given back when they are forgotten


class Session:
    """One conversation. Every method holds `lock`, so a call is atomic; a turn of several calls is up to the caller."""

    encodes_images = keeps_tokens = True  # the vision tower runs here; what was said is known token by token

    def __init__(self, model: Model, *, trace: Trace = NO_TRACE) -> None:
        self.model, self.trace, self.lock = model, trace, threading.RLock()
        self.sequence = TokenSequence(model.manifest.tokens)
        self._computed = 0
        self._cache: KvCache | None = None
        self._cuts: list[int] = []
        self._rows: F32 | None = None  # logits of the newest tokens; row 0 belongs to token `_rows_at`
        self._rows_at = -1
        self._draft: tuple[int, ...] = ()
        self._prefix = SharedPrefix(model)
        self._snapshots = Snapshots(model.state_arrays > 0)
        self._counts = Counter(dict.fromkeys(Usage.__dataclass_fields__, 0))
        self.brought: dict[FeatureKey, Features] = {}  # out of the file that it was loaded from
        self.encoded_early: set[FeatureKey] = set()  # crops that are encoded before they are appended

    # -- looking ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.sequence.length

    @property
    def tokens(self) -> I32:
        """All token ids [n]; a view that is valid until the next append."""
        return self.sequence.ids

    @property
    def computed(self) -> int:
        """How many tokens are in the KV cache."""
        return self._computed

    @property
    def images(self) -> tuple[RegisteredImage, ...]:
        """The registry's geometry, for dialects."""
        return tuple(i.geometry for i in self.sequence.images)

    @property
    def digests(self) -> list[str]:
        """Content of the registry's frames, in order."""
        return [i.digest for i in self.sequence.images]

    @property
    def room(self) -> int:
        """Tokens that can still be appended."""
        return self.model.max_context - self.sequence.length

    @property
    def usage(self) -> Usage:
        """What was computed and saved since the session began."""
        return Usage(**self._counts)

    def image(self, index: int) -> SessionImage:
        """The registry's image `index`.

        Raises:
            SessionError: there is none.
        """
        return self.sequence.image(index)

    def frame(self, index: int) -> Frame:
        """The original frame that image `index` was cut from.

        Raises:
            SessionError: the session was loaded without its frames.
        """
        return self.image(index).planned_view().frame

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
            index = len(self.sequence.images)
            image = SessionImage.planned(plan, index, index if source is None else source)
            self.sequence.images.append(image)
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
            behind: the length of the conversation that is appended to, where `anticipate` has written after it: what
                it got right stays, with its KV, the rest is forgotten.

        Raises:
            ContextOverflowError: it does not fit; nothing was appended.
            SessionError: a segment names an image that was not registered.
        """
        with self.lock:
            parts = self.model.tokenizer.encode(segments)
            size = self.sequence.size(parts, self.sequence.images)
            start = len(self) if behind is None else behind
            size.check_room(self.model.max_context, start, reserve)
            fresh = start == 0
            self._go_on(parts, start)
            self._counts.update(prompt_tokens=size.tokens, image_tokens=size.shown)
            if fresh:
                self._reuse_prefix(segments)
            return size.tokens

    def anticipate(self, one: Sequence[Segment], other: Sequence[Segment], behind: int, *, reserve: int = 0) -> int:
        """Write after token `behind` what two possible continuations have in common, for `run` to compute early.

        The conversation proper still ends at `behind`: `append(…, behind=behind)` continues with what was really said,
        `rewind` forgets it. Returns the number of tokens that wait to be computed; 0 where there is no room.

        Raises:
            SessionError: a segment names an image that was not registered.
        """
        with self.lock:
            parts = shared(self.model.tokenizer.encode(one), self.model.tokenizer.encode(other))
            size = self.sequence.size(parts, self.sequence.images)
            if behind + size.tokens + reserve > self.model.max_context:
                return 0
            self._snapshots.want(behind)
            self._go_on(parts, behind)
            return len(self) - self._computed

    def restart(self, plans: Sequence[VisionPlan], segments: Sequence[Segment], *, reserve: int = 0) -> int:
        """Begin another conversation, keeping the KV of what it has in common with this one.

        Tokens are compared one by one, images by content and size, so a second question about the same frame costs
        only its own words, wherever its dialect puts the image. Returns the number of tokens that were kept.

        Args:
            plans: the new registry, in order (see `VisionEncoder.plan`).

        Raises:
            ContextOverflowError: it does not fit; the old conversation is as it was.
            SessionError: a segment names an image that is not in `plans`; the old conversation is as it was.
        """
        images = [SessionImage.planned(plan, index, index) for index, plan in enumerate(plans)]
        with self.lock:
            parts = self.model.tokenizer.encode(segments)
            size = self.sequence.size(parts, images)
            size.check_room(self.model.max_context, 0, reserve)
            kept, rest = self.sequence.common(parts, images)
            self.cut(kept)
            self.sequence.images = images
            for image in images:
                self._trace_image(image)
            shown = self._write(rest)
            self._counts.update(prompt_tokens=size.tokens - kept, reused_tokens=kept, image_tokens=shown)
            if kept == 0:
                self._reuse_prefix(segments)
            return kept

    def extend(self, ids: Iterable[int], *, forced: bool = False, given: bool = False) -> None:
        """Append tokens that the policy wrote (or that its grammar forced). `given`: it is to read them instead.

        Raises:
            ContextOverflowError: they do not fit; nothing was appended.
        """
        new = tuple(ids)
        with self.lock:
            if self.sequence.length + len(new) > self.model.max_context:
                Size(len(new), 0).check_room(self.model.max_context, len(self))
            self.sequence.append_ids(new, written=not given)
            self._draft = ()
            self._counts["prompt_tokens" if given else "forced_tokens" if forced else "generated_tokens"] += len(new)

    def _go_on(self, parts: Sequence[EncodedPart], start: int) -> None:
        """Make the conversation contain `parts` from token `start` on; what is there already stays as it is."""
        kept, rest = self.sequence.common(parts, self.sequence.images, start)
        self.cut(kept)
        self._write(rest)

    def _write(self, parts: Sequence[EncodedPart]) -> int:
        """Add to the sequence; returns the tokens of images among them."""
        self._draft = ()
        shown = sum(self.sequence.append(part) for part in parts)
        self._snapshots.want(*(span.stop + 1 for span in self.sequence.spans))  # other questions go on there
        return shown

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
            length = self.sequence.length
            if length == 0:
                raise SessionError("the session is empty: append a prompt before running it")
            if not draft and self._computed == length:
                if self._rows is None or self._rows_at != length - 1:
                    self._rows, self._rows_at = self._snapshots.rows(length), length - 1
                if self._rows is not None:
                    return self._rows[:1]
            start = min(self._computed, length - 1)
            start = self._computed = self._snapshots.begin(self._cache, start) if self._snapshots.recurrent else start
            ids, where, written = self.sequence.ahead(start, draft)
            self._rows = None  # an engine may write the next logits over the last ones
            logits = self._chunks(start, ids, where, written, 1 + len(draft), budget)
            self._rows, self._rows_at, self._draft = logits, length - 1, tuple(draft)
            return logits

    def accept(self, count: int, *, forced: bool = False) -> None:
        """Append the first `count` tokens left of the last run's draft, whose KV is there; `forced`: by the grammar.

        Raises:
            SessionError: the last run had no such draft, or something was appended since.
        """
        with self.lock:
            if count > len(self._draft) or self._computed != len(self):
                raise SessionError(f"{count} draft tokens can't be accepted: the last run tried {len(self._draft)}")
            rows, draft = self._rows, self._draft
            self.sequence.append_ids(draft[:count], written=True)
            self._computed = len(self)
            self._counts["forced_tokens" if forced else "generated_tokens"] += count
            if rows is not None:
                self._rows, self._rows_at = rows[count:], len(self) - 1
            self._draft = draft[count:]

    def encode_images(self, budget: Budget = UNLIMITED) -> None:
        """Run the vision tower for images that the next `run` will need (which would do so itself; errors as there)."""
        with self.lock:
            for span in self.sequence.spans_between(self._computed, len(self)):
                self._features(span, budget)

    def _chunks(self, start: int, ids: I32, where: I32, written: Flags, last_k: int, budget: Budget) -> F32:
        end, chunk = start + len(ids), max(self.model.chunk, last_k)
        if self._cache is None:
            self._cache = self.model.decoder.new_cache(end)
        at = start
        while True:
            stop = run_end(at, end, chunk, last_k, self._prefix.length)
            if self._snapshots.recurrent:
                stop = self._snapshots.run_end(at, stop, end - last_k)
            read, fit = read_rows(written[at - start : stop - start])
            if at + fit < stop and self.model.rows_independent:
                stop = at + fit
            final, part = stop == end, slice(at - start, stop - start)
            images = self._placed(at, stop, budget) if at < self.sequence.shown else []
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
            self._computed = min(stop, self.sequence.length)
            if images:
                self.sequence.drop_features(stop)  # they are in the KV cache now; the feature cache may keep them
            if self._prefix.length:
                self._prefix.computed(self.sequence, self._cache, stop)
            if self._snapshots.recurrent and stop <= self.sequence.length:
                self._snapshots.ran(self._cache, stop, logits[-1], final and stop - start > 1)
            if final:
                return logits
            at = stop

    def _placed(self, at: int, stop: int, budget: Budget) -> list[PlacedImage]:
        return [
            PlacedImage(first - at, first - span.start, last - first, self._features(span, budget))
            for span, first, last in self.sequence.covered(at, stop)
        ]

    def _features(self, span: ImageSpan, budget: Budget) -> Features:
        image = self.sequence.images[span.image]
        if image.features is None:
            plan = image.planned_view()
            image.features, cached = self.model.vision.encode(plan, budget, self.trace, self.brought)
            if plan.key in self.encoded_early:  # in the cache, but only because this question put it there
                self.encoded_early.discard(plan.key)
                cached = False
            self._counts["cached_images" if cached else "encoded_images"] += 1
        return image.features

    def _reuse_prefix(self, segments: Sequence[Segment]) -> None:
        """Take the KV of the leading wording from the cache, or note that it is to be kept."""
        found = self._prefix.find(self.sequence, segments)
        if found is not None:
            self._cache, self._computed = found
            self._snapshots.ran(self._cache, self._computed, None, True)
            self._counts.update(prompt_tokens=-self._computed, reused_tokens=self._computed)

    # -- going back ------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """The present end, to come back to."""
        with self.lock:
            self._snapshots.want(len(self))
            return Mark(len(self), self.sequence.delta, len(self.sequence.images), len(self._cuts))

    def rewind(self, mark: Mark) -> None:
        """Back to `mark`: tokens and images since then are forgotten, the KV before it is kept.

        Raises:
            SessionError: the conversation was cut before the mark since.
        """
        with self.lock:
            if mark.length > len(self) or any(cut < mark.length for cut in self._cuts[mark.cuts :]):
                raise SessionError(f"the mark at token {mark.length} is void: the conversation was cut before it")
            self.cut(mark.length)
            if self.sequence.delta != mark.delta:
                raise SessionError(f"the mark at token {mark.length} has another position delta; start a new session")
            del self.sequence.images[max(mark.images, 0) :]

    def cut(self, length: int) -> None:
        """Forget every token from `length` on (not inside an image); registered images stay.

        Raises:
            SessionError: `length` is out of range or inside an image.
        """
        with self.lock:
            if length == len(self):
                self._draft = ()
                return
            self.sequence.truncate(length)
            self._prefix.cut(length)
            self._snapshots.cut(length)
            was, self._computed = self._computed, self._snapshots.place(self._cache, min(self._computed, length))
            if was - self._computed >= _MANY:
                forget(self._cache, self._computed)
            self._cuts.append(length)
            self._draft = ()
            if self._rows_at != length - 1:
                self._rows, self._rows_at = None, -1
