"""A session whose policy runs on a server: what was said so far, as text and pictures, and how long that is.

Nothing is computed here. Lengths are counted in tokens as a session's are, but estimated (three characters a token, and
what a picture takes) until the server says how long the conversation was. The server keeps its cache by the beginning
of a conversation, which never changes: turns are appended, a picture is encoded once and sent with every turn.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from gog_edge.crop import crop_image
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.remote.server import Server
from gog_edge.engines.remote.wire import TurnRequest
from gog_edge.errors import SessionError
from gog_edge.runtime.model import Model
from gog_edge.runtime.remote.messages import Part, Written, messages_of
from gog_edge.runtime.sequence import Mark, SessionImage, Size
from gog_edge.runtime.session import Session
from gog_edge.runtime.telemetry import NO_TRACE, Trace
from gog_edge.runtime.vision import VisionPlan
from gog_edge.sampling_options import Sampling
from gog_edge.types import ImagePart, Segment

_CHARACTERS = 3  # of a token, until it is known better


class RemoteSession(Session):
    """See `Session`, whose calls it has; what is about tokens themselves it can't do."""

    def __init__(self, model: Model, server: Server, *, trace: Trace = NO_TRACE) -> None:
        super().__init__(model, trace=trace)
        self.server = server
        self._parts: list[Part] = []
        self._ends: list[int] = []  # length after each part
        self._prefill = ""  # what the chat template itself begins a turn with
        self._sent: dict[int, str] = {}  # pictures as data URLs, by registry index

    encodes_images = False
    keeps_tokens = False

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def room(self) -> int:
        """Tokens that can still be appended, by estimate."""
        return self.model.max_context - len(self)

    def append(self, segments: Sequence[Segment], *, reserve: int = 0, behind: int | None = None) -> int:
        """See `Session.append`."""
        with self.lock:
            if behind is not None:
                self.cut(behind)
            size = self._size(segments)
            size.check_room(self.model.max_context, len(self), reserve)
            for segment in segments:
                self._add(segment, self._length(segment))
            self._counts.update(prompt_tokens=size.tokens, image_tokens=size.shown)
            return size.tokens

    def anticipate(self, one: Sequence[Segment], other: Sequence[Segment], behind: int, *, reserve: int = 0) -> int:
        """Nothing is read ahead: a server would take it for a turn."""
        return 0

    def restart(self, plans: Sequence[VisionPlan], segments: Sequence[Segment], *, reserve: int = 0) -> int:
        """See `Session.restart`; what was kept is known to the server alone."""
        images = [SessionImage.planned(plan, index, index) for index, plan in enumerate(plans)]
        with self.lock:
            before = self.sequence.images
            self.sequence.images = images
            try:
                self._size(segments).check_room(self.model.max_context, 0, reserve)
            except BaseException:
                self.sequence.images = before
                raise
            same = len(before) >= len(images) and all(a.same(b) for a, b in zip(images, before))
            self._sent = {i: url for i, url in self._sent.items() if same and i < len(images)}
            for image in images:
                self._trace_image(image)
            self._parts, self._ends, self._computed = [], [], 0
            self.append(segments, reserve=reserve)
            last = messages_of(self._parts, lambda _: "")[-1]
            self._prefill = str(last["content"]) if last["role"] == "assistant" else ""
            return 0

    def encode_images(self, budget: Budget = UNLIMITED) -> None:
        """The server does that."""

    # -- turns -----------------------------------------------------------------------------------------------

    @property
    def prefill(self) -> str:
        """With what the chat template itself begins a turn of the policy."""
        return self._prefill

    def request(self, sampling: Sampling, max_tokens: int, stop: tuple[str, ...]) -> tuple[TurnRequest, str]:
        """What to send for the next turn; and the beginning of it that was meant and that the server can't be given.

        Raises:
            DialectError: the chat template can't be sent.
        """
        with self.lock:
            messages = messages_of(self._parts, self._picture)
        begun = str(messages[-1]["content"]) if messages[-1]["role"] == "assistant" else ""
        continues = begun != self._prefill and self.server.continues
        if messages[-1]["role"] == "assistant" and not continues:
            messages.pop()
        meant = begun if begun != self._prefill and not continues else ""
        side = self.model.manifest.preprocessing.factor
        return TurnRequest(messages, sampling, max_tokens, stop, continues, side), meant

    def wrote(self, text: str, tokens: int = 1) -> None:
        """The policy wrote `text`, in about so many tokens."""
        with self.lock:
            if self._parts and isinstance(last := self._parts[-1], Written):
                self._parts[-1] = Written(last.text + text)
                self._ends[-1] += tokens
            else:
                self._add(Written(text), tokens)
            self._counts["generated_tokens"] += tokens
            self._computed = len(self)

    def counted(self, usage: Mapping[str, Any], unread: int, pieces: int) -> None:
        """The server's own counts of a turn: how long the conversation is, how much of it was written and cached.

        Args:
            unread: tokens that the turn was estimated to read. pieces: and those that were counted as written.
        """
        prompt, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        details = usage.get("prompt_tokens_details")
        cached = min(_count(details, "cached_tokens"), prompt) if isinstance(details, Mapping) else 0
        with self.lock:
            if written:
                self._counts["generated_tokens"] += written - pieces
            if prompt and self._ends:
                before = self._ends[-2] if len(self._ends) > 1 else 0
                self._ends[-1] = max(prompt + (written or pieces), before + 1)
                self._computed = len(self)
                self._counts["prompt_tokens"] += prompt - cached - unread
                self._counts["reused_tokens"] += cached

    # -- going back ------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """See `Session.mark`."""
        with self.lock:
            return Mark(len(self), 0, len(self.sequence.images), 0)

    def rewind(self, mark: Mark) -> None:
        """See `Session.rewind`."""
        with self.lock:
            if mark.length > len(self):
                raise SessionError(f"the mark at token {mark.length} is void: the conversation was cut before it")
            self.cut(mark.length)
            del self.sequence.images[max(mark.images, 0) :]
            self._sent = {i: url for i, url in self._sent.items() if i < mark.images}

    def cut(self, length: int) -> None:
        """Forget what was said from `length` on."""
        with self.lock:
            while self._ends and self._ends[-1] > length:
                self._parts.pop()
                self._ends.pop()
            self._computed = min(self._computed, len(self))

    # -- lengths and pictures --------------------------------------------------------------------------------

    def _add(self, part: Part, tokens: int) -> None:
        self._parts.append(part)
        self._ends.append(len(self) + tokens)

    def _length(self, segment: Segment) -> int:
        if isinstance(segment, ImagePart):
            return self.sequence.image(segment.image).tokens + 2
        return -(-len(segment.text) // _CHARACTERS)

    def _size(self, segments: Sequence[Segment]) -> Size:
        lengths = [self._length(s) for s in segments]
        return Size(sum(lengths), sum(n for n, s in zip(lengths, segments) if isinstance(s, ImagePart)))

    def _picture(self, index: int) -> str:
        """Registry image `index` as a data URL: our crop, in exactly the size that the policy is to see."""
        if index not in self._sent:
            from PIL import Image

            plan = self.sequence.image(index).planned_view()
            size = plan.grid.pixels(self.model.manifest.preprocessing.patch_size)
            with self.trace.span("crop", tokens=plan.tokens):
                pixels = crop_image(plan.frame, plan.region, size)
                out, quality = io.BytesIO(), self.server.options.jpeg
                if quality:
                    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=0)
                else:
                    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
            kind = "jpeg" if quality else "png"
            self._sent[index] = f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
            self._counts["encoded_images"] += 1
        return self._sent[index]


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
