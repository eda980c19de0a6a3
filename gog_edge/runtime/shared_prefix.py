"""What a conversation begins with, from the prefix cache or for it: one session's side of `PrefixCache`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile

from gog_edge.engines.base import KvCache
from gog_edge.errors import EngineError
from gog_edge.runtime.model import Model
from gog_edge.runtime.sequence import TokenSequence
from gog_edge.runtime.snapshots import pack, unpack
from gog_edge.types import Control, Segment

log = logging.getLogger("gog_edge.cache")


class SharedPrefix:
    """`length`: of a prefix that is to be kept once it is computed; a run must end there. 0: none."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.length = 0

    def find(self, sequence: TokenSequence, segments: Sequence[Segment]) -> tuple[KvCache, int] | None:
        """A cache that holds the leading wording already, and of how many tokens; None: nothing is known of it, and it
        is noted that it is to be kept."""
        leading = list(takewhile(lambda segment: isinstance(segment, Control), segments))
        store = self._model.prefixes
        if store is None or not leading:
            return None
        parts = self._model.tokenizer.encode(leading)
        same, _ = sequence.common(parts, ())  # text after it may merge into its last token
        count = min(same, len(sequence) - 1)
        arrays = store.load(sequence.ids[:count].copy())
        if arrays is None:
            self.length = count
            return None
        cache = self._model.decoder.new_cache(len(sequence))
        try:
            unpack(cache, count, arrays, self._model.state_arrays)
        except EngineError as e:  # whole by its checksums, and yet not what this policy makes
            log.warning("a cached prompt prefix is left out: %s", e)
            self.length = count
            return None
        return cache, count

    def computed(self, sequence: TokenSequence, cache: KvCache, stop: int) -> None:
        """A run has ended at token `stop`."""
        store = self._model.prefixes
        if store is None or not 0 < self.length <= stop:
            return
        if stop == self.length or not self._model.state_arrays:
            arrays = pack(cache, self.length, self._model.state_arrays > 0)
            store.save(sequence.ids[: self.length].copy(), arrays)
        self.length = 0

    def cut(self, length: int) -> None:
        """The conversation ends at `length` now."""
        self.length = self.length if self.length <= length else 0
